"""Runs one evaluation, writes `result.json` and `predictions.parquet`, and formats results as text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.evaluate.config import TransferConfig
from trainer.evaluate.finetune import finetune
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.probe import Features, features, probe
from trainer.evaluate.scores import auroc, bootstrap_auroc, interval, macro_auroc, r2, scorable
from trainer.evaluate.task import Task
from umbra.card import Evaluation
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError
from umbra.files import atomic, make_folder, read_json_as, write_text
from umbra.schema import SPLITS

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
FIX = "give result.json files that `python -m trainer.transfer` wrote"
SHOWN = {"auroc": "AUROC", "r2": "R2"}


def run(
    config: TransferConfig,
    task: Task,
    encoder: Encoder,
    given: Features | None = None,
    leaks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, selects, tests, writes predictions.parquet and then result.json to `config.output`; returns the result.

    `given`: precomputed features of this encoder and task (probe only); `leaks`: what `leaks.check` returned.
    """
    began = time.monotonic()
    chosen = task.choose(config.fraction, config.seed)
    if config.mode == "probe":
        fitted = probe(task, given or features(encoder, task, config.batch), chosen, config.probe)
    else:
        fitted = finetune(task, encoder, chosen, config)
    result = _result(config, task, chosen, fitted) | {"leaks": leaks, "seconds": round(time.monotonic() - began, 2)}
    _write(Path(config.output), task, fitted.prediction, result)
    return result


def _result(config: TransferConfig, task: Task, chosen: np.ndarray, fitted: Fitted) -> dict[str, Any]:
    manifest = task.test.shards.manifest
    return {
        "task": task.name,
        "kind": task.kind,
        "mode": config.mode,
        "encoder": config.encoder,
        "like": config.like,
        "data": {"fingerprint": manifest.fingerprint, "key_id": manifest.key_id},
        "fraction": config.fraction,
        "seed": config.seed,
        "classes": task.names,
        "counts": task.counts(task.train.take(chosen)),
        "notes": task.notes,
        "chosen": fitted.chosen,
        **(_numbers(task, fitted) if task.kind == "number" else _aurocs(config, task, fitted)),
    }


def _numbers(task: Task, fitted: Fitted) -> dict[str, Any]:
    values = r2(task.test.target, fitted.prediction)
    each = {name: {"r2": float(value), "low": None, "high": None} for name, value in zip(task.names, values)}
    return {
        "metric": "r2",
        "val_r2": fitted.val_value,
        "r2": float(values.mean()),
        "low": None,
        "high": None,
        "per_class": each,
    }


def _aurocs(config: TransferConfig, task: Task, fitted: Fitted) -> dict[str, Any]:
    target, score, patient = task.test.target, fitted.prediction, task.test.patient
    scored = scorable(target)
    resampled = bootstrap_auroc(target, score, patient, config.bootstrap, config.seed)
    low, high = interval(resampled.mean(1))
    per_class = {}
    for column, k in enumerate(scored):
        ends = interval(resampled[:, column])
        value = auroc(target[:, k] > 0, score[:, k])
        per_class[task.names[k]] = {"auroc": value, "low": ends[0], "high": ends[1]}
    return {
        "metric": "auroc",
        "val_auroc": fitted.val_value,
        "auroc": macro_auroc(target, score),
        "low": low,
        "high": high,
        "resamples": int(np.isfinite(resampled.mean(1)).sum()),
        "per_class": per_class,
    }


def _write(output: Path, task: Task, probability: np.ndarray, result: dict[str, Any]) -> None:
    make_folder(output, "output")
    columns: dict[str, Any] = {"row": task.test.row, "patient": task.test.patient}
    if task.kind == "classes":
        columns["label"] = [task.names[k] for k in task.test.target.argmax(1)]
    else:
        columns |= {f"y_{name}": task.test.target[:, k] for k, name in enumerate(task.names)}
    columns |= {f"p_{name}": probability[:, k] for k, name in enumerate(task.names)}
    with atomic(output / PREDICTIONS) as temporary:
        pq.write_table(pa.table(columns), temporary)
    write_text(output / RESULT, json.dumps(plain(result), indent=1) + "\n")


def plain(value: Any) -> Any:
    """A copy with NaN and infinities replaced by null, since JSON has neither."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(result: dict[str, Any]) -> str:
    """The result as a short text table."""
    head = (
        f"{result['task']}: {result['mode']} of {result['encoder']}, {result['fraction']:.4g} of the labels, "
        f"seed {result['seed']}, chosen {', '.join(f'{k}={v:g}' for k, v in result['chosen'].items())}"
    )
    lines = [head, f"{'class':<12}{'train':>7}{'val':>7}{'test':>7}  {SHOWN[result['metric']]} (95 % by patients)"]
    for name in result["classes"]:
        counts = [result["counts"][split].get(name, 0) for split in SPLITS]
        lines.append(_line(name, counts, result["per_class"].get(name)))
    lines.append(_line("macro", [sum(result["counts"][s].values()) for s in SPLITS], result))
    return "\n".join(lines)


def comparison(paths: Sequence[str]) -> str:
    """One line for each result.json: task, encoder, fraction, macro AUROC with its interval."""
    if not paths:
        raise UserError("name the results to compare: python -m trainer.transfer compare RESULT.json ...")
    lines = [f"{'task':<12}{'labels':>8}  {'macro AUROC (95 % by patients)':<32}encoder"]
    for path in paths:
        r = read_scored(Path(path))
        lines.append(f"{r['task']:<12}{r['fraction']:>8.0%}  {score_text(r):<32}{r['encoder']}")
    return "\n".join(lines)


class Scored(TypedDict):
    """What a comparison needs of a result.json."""

    task: str
    encoder: str
    fraction: float
    auroc: float
    low: float | None
    high: float | None


def read_scored(path: Path) -> Scored:
    """Reads a result.json. Raises `UserError` if it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} does not exist: {FIX}")
    return read_json_as(Scored, path, FIX)


class _OfTask(TypedDict):
    """What a model card says of a result.json; the values are under the name of its `metric` (none: auroc)."""

    task: str
    mode: str
    encoder: str
    fraction: float
    seed: int
    data: dict[str, str]
    low: float | None
    high: float | None
    per_class: dict[str, dict[str, float | None]]


def read_evaluation(path: Path) -> tuple[Evaluation, str]:
    """What a model card says of a result.json, and the encoder that it names.

    Raises `UserError` if it cannot be read, or is not of trained weights.
    """
    r = read_json_as(_OfTask, path, FIX)
    if r["mode"] == "scratch" or r["encoder"] == "random":
        raise UserError(f"{path} is of random weights (mode={r['mode']}, encoder={r['encoder']}): leave it out")
    metric = str(r.get("metric", "auroc"))
    value = r.get(metric)
    if metric not in SHOWN or not isinstance(value, float | int) or "fingerprint" not in r["data"]:
        raise UserError(f"{path} has no {' or '.join(SHOWN.values())} or names no data: {FIX}")
    per_class = {name: score for name, one in r["per_class"].items() if (score := one.get(metric)) is not None}
    return Evaluation(
        r["task"],
        r["mode"],
        r["fraction"],
        r["seed"],
        r["data"]["fingerprint"],
        SHOWN[metric],
        value,
        r["low"],
        r["high"],
        per_class,
    ), r["encoder"]


def score_text(scored: Mapping[str, Any]) -> str:
    """AUROC with its interval, which is missing without resamples."""
    low, high = scored["low"], scored["high"]
    known = None not in (low, high) and math.isfinite(low + high)
    return f"{scored['auroc' if 'auroc' in scored else 'r2']:.3f} " + (
        f"({low:.3f} to {high:.3f})" if known else "(no interval)"
    )


def _line(name: str, counts: Sequence[int], scored: dict[str, Any] | None) -> str:
    value = score_text(scored) if scored else "not scored"
    return f"{name:<12}{counts[0]:>7}{counts[1]:>7}{counts[2]:>7}  {value}"
