"""Runs one evaluation and writes `result.json` and `predictions.parquet`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import umbra
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.finetune import finetune, spread
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.groups import groups_of, scored_groups
from trainer.evaluate.keep import MODEL, keep
from trainer.evaluate.metrics import MAIN, Predicted, figures, thresholds_of
from trainer.evaluate.probe import Features, features, probe
from trainer.evaluate.store import Store, folder_of, weights_hash
from trainer.evaluate.task import Task
from umbra.config import as_dict
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError
from umbra.files import atomic, make_folder, remove_partial, sha256, write_text

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
FIGURE = "figure.png"


def written(config: TransferConfig) -> list[str]:
    """The names of what a run leaves in `output`."""
    return [RESULT, PREDICTIONS, *([FIGURE] if config.figure else []), *([MODEL] if config.mode != "probe" else [])]


def run(
    config: TransferConfig,
    task: Task,
    encoder: Encoder,
    given: Features | None = None,
    identity: str = "",
    leaks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, selects, tests, writes predictions.parquet and then result.json to `config.output`; returns the result.

    `given`: precomputed features of this encoder and task (probe only); `identity`: its `weights_hash`, if known;
    `leaks`: what `leaks.check` returned.
    """
    began = time.monotonic()
    groups = groups_of(task.test, config.by)
    chosen = task.choose(config.fraction, config.seed, config.draw)
    identity = identity or weights_hash(encoder)
    more: dict[str, Any] = {}
    if config.mode == "probe":
        store = Store(encoder, config.batch, folder_of(config), identity)
        fitted = probe(task, given or features(task, store), chosen, config.probe)
    else:
        fitted, more = _trained(config, task, encoder, chosen)
    more |= {"leaks": leaks, "encoder_sha256": identity, "seconds": round(time.monotonic() - began, 2)}
    result = _result(config, task, chosen, fitted, groups) | more
    with _writing(Path(config.output)):
        _write(config, task, fitted.prediction, result)
    return result


def _trained(config: TransferConfig, task: Task, encoder: Encoder, chosen: np.ndarray) -> tuple[Fitted, dict[str, Any]]:
    """The fit of the seed that is best on val, whose model is kept, and what the result says of all seeds."""
    fits = finetune(task, encoder, chosen, config)
    best = max(fits, key=lambda fit: fit.val_value)
    output = Path(config.output)
    with _writing(output):
        keep(output / MODEL, task, best, config, older=output / RESULT)
    notes = task.notes + [note for fit in fits for note in fit.notes]
    return best, {"notes": notes, "seeds": spread(fits, task.test.target) | {"kept": best.seed}}


def _result(
    config: TransferConfig, task: Task, chosen: np.ndarray, fitted: Fitted, groups: dict[str, np.ndarray]
) -> dict[str, Any]:
    manifest, main = task.test.shards.manifest, MAIN[task.kind]
    test = Predicted(task.test.target, fitted.prediction, task.test.patient)
    thresholds = thresholds_of(task.kind, task.val.target, fitted.val)
    means, per_class = figures(task.kind, task.names, test, thresholds, config.bootstrap, config.seed)
    rows = np.sort(task.train.row[chosen])
    first = means[main]
    return {
        "task": task.name,
        "kind": task.kind,
        "mode": config.mode,
        "encoder": config.encoder,
        "like": config.like,
        "data": {"fingerprint": manifest.fingerprint, "key_id": manifest.key_id},
        "fraction": config.fraction,
        "seed": config.seed,
        "draw": config.draw,
        "classes": task.names,
        "counts": task.counts(task.train.take(chosen)),
        "notes": task.notes,
        "chosen": fitted.chosen,
        "metric": main,
        f"val_{main}": fitted.val_value,
        main: first["value"],
        "low": first["low"],
        "high": first["high"],
        "resamples": first["resamples"],
        "metrics": means,
        "per_class": per_class,
        "by": scored_groups(task.kind, task.names, test, groups, config.least, config.bootstrap, config.seed),
        "train_rows": {"count": len(rows), "sha256": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()},
        "config": as_dict(config),
        "versions": {"umbra": umbra.__version__}
        | {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
    }


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Raises `UserError` where a file of the output cannot be written, on a full disk above all."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise UserError(
            f"output={output}: writing failed ({reason}): free some space, or choose another output=DIR"
        ) from error


def _write(config: TransferConfig, task: Task, prediction: np.ndarray, result: dict[str, Any]) -> None:
    output = Path(config.output)
    make_folder(output, "output")
    remove_partial(output)
    columns: dict[str, Any] = {"row": task.test.row, "patient": task.test.patient}
    if task.kind == "classes":
        columns["label"] = [task.names[k] for k in task.test.target.argmax(1)]
    else:
        columns |= {f"y_{name}": task.test.target[:, k] for k, name in enumerate(task.names)}
    columns |= {f"p_{name}": prediction[:, k] for k, name in enumerate(task.names)}
    with atomic(output / PREDICTIONS) as temporary:
        pq.write_table(pa.table(columns), temporary)
        (output / RESULT).unlink(missing_ok=True)  # if there is an older one: it is not of these
    (output / FIGURE).unlink(missing_ok=True)  # an older one would not be of this result
    if config.figure:
        from trainer.evaluate.task_figure import task_figure

        task_figure(task.kind, task.names, task.test.target, prediction, output / FIGURE)
    result["predictions"] = {"file": PREDICTIONS, "sha256": sha256(output / PREDICTIONS)}
    write_text(output / RESULT, json.dumps(plain(result), indent=1) + "\n")


def plain(value: Any) -> Any:
    """A copy with NaN and infinities replaced by null, since JSON has neither."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
