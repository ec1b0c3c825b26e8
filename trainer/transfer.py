"""What an encoder is worth where labels are scarce: linear probe, fine-tuning, training from scratch.

`python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR|random data=DIR output=DIR [fraction=0.1]
[mode=probe|finetune|scratch] [seed=0] [like=DIR]`; `python -m trainer.transfer compare RESULT.json ...` tabulates.

Trained on a fraction of the train split, settings chosen on `val`, tested once on `test`; result.json and
predictions.parquet land in `output`. The tasks are in configs/transfer/, the keys are described in trainer/transfer.py.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from sharding.config import UserError, check_ranges, command, load
from sharding.files import atomic, claim_folder, write_text
from sharding.schema import SPLITS
from trainer.data.shards import Shards
from trainer.hub import initialise, load_encoder, read_config
from trainer.models.batchnorm import batch_norms, estimate
from trainer.scores import auroc, bootstrap_auroc, interval, macro_auroc, scorable
from trainer.task import Labelled, Task, TaskConfig, fraction_of, read_task

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
MODES = ("probe", "finetune", "scratch")
RANGES = {
    "fraction": "> 0 and <= 1",
    "seed": ">= 0 and < 1e18",
    "batch": ">= 1",
    "bootstrap": ">= 0",
    "probe.C": "> 0",
    "finetune.lr": "> 0",
    "finetune.epochs": ">= 1",
    "finetune.batch": ">= 1",
    "finetune.weight_decay": ">= 0",
    "finetune.clip": "> 0",
}


@dataclass
class ProbeConfig:
    """Logistic regression on frozen features: the inverse regularisations `C` that val chooses from."""

    C: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])


@dataclass
class FinetuneConfig:
    """AdamW with a cosine schedule; val chooses the learning rate and the epoch."""

    lr: list[float] = field(default_factory=lambda: [3e-4, 1e-3])
    epochs: int = 20
    batch: int = 64
    weight_decay: float = 1e-2
    clip: float = 1.0


@dataclass
class TransferConfig(TaskConfig):
    """How to test an encoder on a task.

    `encoder` is a directory, a hub id, or `random` (the architecture of `like`, weights from `seed`). `fraction` of the
    train labels, per class and at least 2. `bootstrap` resamples of the test patients.
    """

    encoder: str = ""
    like: str = ""
    output: str = ""
    mode: str = "probe"
    fraction: float = 1.0
    seed: int = 0
    batch: int = 256
    device: str = "auto"
    bootstrap: int = 2000
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


def main(argv: list[str]) -> None:
    if argv and argv[0] == "compare":
        print(comparison(argv[1:]))
        return
    path = argv[0] if argv and "=" not in argv[0] else None
    config = load(TransferConfig, path, argv[1:] if path else argv)
    _check(config)
    task = read_task(config)
    encoder = open_encoder(config, task.train)
    for note in task.notes:
        print(f"note: {note}")
    result = run(config, task, encoder)
    print(table(result))
    print(f"written: {Path(config.output) / RESULT}, {Path(config.output) / PREDICTIONS}")


def _check(config: TransferConfig) -> None:
    if not config.name:
        raise UserError("name the task first: python -m trainer.transfer configs/transfer/rhythm.yaml key=value ...")
    for key in ("encoder", "data", "output"):
        if not getattr(config, key):
            raise UserError(f"key '{key}' is needed: {key}={'DIR|random' if key == 'encoder' else 'DIR'}")
    if config.encoder == "random" and not config.like:
        raise UserError("encoder=random needs like=DIR, an encoder directory whose architecture it takes")
    if config.mode not in MODES:
        raise UserError(f"mode={config.mode}: known modes are {', '.join(MODES)}")
    check_ranges(config, RANGES)
    if not config.probe.C or not config.finetune.lr:
        raise UserError("probe.C and finetune.lr each need at least one value")
    claim_folder(config.output, "output")
    _device(config.device)


# --- encoders --------------------------------------------------------------------------------------------------------


def open_encoder(config: TransferConfig, train: Labelled) -> nn.Module:
    """The encoder that the config names, on its device; randomly initialised for `encoder=random` or `mode=scratch`.

    Batch norm of one that stays random gets the mean and variance of the train records, as that of an exported one has
    those of its training ECGs. Raises `UserError` if the data are not of the encoder's kind.
    """
    name, device = config.like if config.encoder == "random" else config.encoder, _device(config.device)
    fresh = config.encoder == "random" or config.mode == "scratch"
    encoder = initialise(read_config(name), config.seed).to(device) if fresh else load_encoder(name, device)
    _check_fits(encoder, train.shards, config)
    if fresh and batch_norms(encoder) and config.mode == "probe":
        estimate(encoder, (signals(part, device) for part in _parts(train, config.batch)))
    return encoder


def _check_fits(encoder: nn.Module, shards: Shards, config: TransferConfig) -> None:
    """Raises `UserError` if the data's leads, rate or length are not those of the encoder."""
    wanted, given = encoder.config, shards.manifest
    for what in ("rate", "leads", "samples"):
        if getattr(wanted, what) != getattr(given, what):
            raise UserError(
                f"the encoder takes {what} {getattr(wanted, what)}, {config.data} has {getattr(given, what)}: "
                "build the shards with the rate, seconds and leads of the encoder"
            )


def _device(name: str) -> torch.device:
    """Raises `UserError` for a device that is not here."""
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    here = ["auto", "cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in here:
        raise UserError(f"device={name} is not here; use {' or '.join(here)}")
    return torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)


def signals(data: Labelled, device: torch.device) -> Tensor:
    """The ECGs of these records in mV, float32 `[n, leads, samples]`."""
    return torch.from_numpy(data.shards.read_mv(data.index)).to(device)


def embed(encoder: nn.Module, data: Labelled, batch: int) -> np.ndarray:
    """Features of these records, float32 `[n, D]`, by the encoder in eval mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        parts = [encoder(signals(part, device)).float().cpu().numpy() for part in _parts(data, batch)]
    return np.concatenate(parts)


def _parts(data: Labelled, batch: int) -> Iterator[Labelled]:
    """The records in their order, `batch` at a time."""
    for start in range(0, len(data), batch):
        yield data.take(np.arange(start, min(start + batch, len(data))))


# --- the three ways to train -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """What val chose, its macro AUROC there, and the class probabilities of the test records `[n, K]`."""

    chosen: dict[str, float]
    val_auroc: float
    probability: np.ndarray


@dataclass(frozen=True)
class Features:
    """Frozen features of the three splits, standardised with the mean and deviation of the whole train split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def features(encoder: nn.Module, task: Task, batch: int) -> Features:
    raw = [embed(encoder, part, batch) for part in (task.train, task.val, task.test)]
    mean, std = raw[0].mean(0), raw[0].std(0)
    std[std < 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    return Features(*((x - mean) / std for x in raw))


def probe(task: Task, given: Features, chosen: np.ndarray, config: ProbeConfig) -> Fitted:
    """Logistic regression on the `chosen` train records for each C; val takes the best, the smaller C of equals."""
    best: Fitted | None = None
    for c in sorted(config.C):
        model = LogisticRegression(C=c, max_iter=2000).fit(given.train[chosen], task.train.label[chosen])
        value = macro_auroc(task.val.label, model.predict_proba(given.val))
        if best is None or value > best.val_auroc:
            best = Fitted({"C": c}, value, model.predict_proba(given.test))
    assert best is not None
    return best


def finetune(task: Task, encoder: nn.Module, chosen: np.ndarray, config: TransferConfig) -> Fitted:
    """Trains the encoder and a linear head on the `chosen` train records; val takes the learning rate and epoch."""
    best: Fitted | None = None
    for lr in config.finetune.lr:
        model = _with_head(copy.deepcopy(encoder), len(task.classes), config.seed)
        for epoch, state in enumerate(_epochs(model, task.train.take(chosen), lr, config), start=1):
            value = macro_auroc(task.val.label, _probabilities(state, task.val, config.batch))
            if best is None or value > best.val_auroc:
                best = Fitted({"lr": lr, "epoch": epoch}, value, _probabilities(state, task.test, config.batch))
    assert best is not None
    return best


def _with_head(encoder: nn.Module, classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.dim, classes)
    return nn.Sequential(encoder, head.to(next(encoder.parameters()).device))


def _epochs(model: nn.Sequential, train: Labelled, lr: float, config: TransferConfig) -> Iterator[nn.Sequential]:
    """Trains in place and yields the model after every epoch."""
    tune = config.finetune
    device = next(model.parameters()).device
    batch = min(tune.batch, len(train))
    steps = tune.epochs * (len(train) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=tune.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    rng = np.random.default_rng([config.seed, 0xF1])
    for _ in range(tune.epochs):
        model.train()
        order = rng.permutation(len(train))
        for start in range(0, len(train) - batch + 1, batch):
            part = train.take(order[start : start + batch])
            loss = functional.cross_entropy(model(signals(part, device)), torch.from_numpy(part.label).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), tune.clip)
            optimizer.step()
            schedule.step()
        yield model


def _probabilities(model: nn.Sequential, data: Labelled, batch: int) -> np.ndarray:
    score = torch.from_numpy(embed(model, data, batch))
    return score.double().softmax(1).numpy()


# --- one result ------------------------------------------------------------------------------------------------------


def run(config: TransferConfig, task: Task, encoder: nn.Module, given: Features | None = None) -> dict[str, Any]:
    """Trains, chooses, tests, writes predictions.parquet and then result.json to `config.output`; returns the result.

    `given`: features computed before for this encoder and task (probe only).
    """
    began = time.monotonic()
    chosen = fraction_of(task.train.label, task.train.patient, config.fraction, config.seed)
    if config.mode == "probe":
        fitted = probe(task, given or features(encoder, task, config.batch), chosen, config.probe)
    else:
        fitted = finetune(task, encoder, chosen, config)
    result = _result(config, task, chosen, fitted) | {"seconds": round(time.monotonic() - began, 2)}
    _write(Path(config.output), task, fitted.probability, result)
    return result


def _result(config: TransferConfig, task: Task, chosen: np.ndarray, fitted: Fitted) -> dict[str, Any]:
    label, score, patient = task.test.label, fitted.probability, task.test.patient
    scored = scorable(label, len(task.classes))
    resampled = bootstrap_auroc(label, score, patient, config.bootstrap, config.seed)
    low, high = interval(resampled.mean(1))
    per_class = {}
    for column, k in enumerate(scored):
        ends = interval(resampled[:, column])
        value = auroc(label == k, score[:, k])
        per_class[task.classes[k]] = {"auroc": value, "low": ends[0], "high": ends[1]}
    manifest = task.test.shards.manifest
    return {
        "task": task.name,
        "mode": config.mode,
        "encoder": config.encoder,
        "like": config.like,
        "data": {"fingerprint": manifest.fingerprint, "key_id": manifest.key_id},
        "fraction": config.fraction,
        "seed": config.seed,
        "classes": task.classes,
        "counts": task.counts(task.train.take(chosen)),
        "notes": task.notes,
        "chosen": fitted.chosen,
        "val_auroc": fitted.val_auroc,
        "auroc": macro_auroc(label, score),
        "low": low,
        "high": high,
        "resamples": int(np.isfinite(resampled.mean(1)).sum()),
        "per_class": per_class,
    }


def _write(output: Path, task: Task, probability: np.ndarray, result: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"row": task.test.row, "patient": task.test.patient}
    columns["label"] = [task.classes[k] for k in task.test.label]
    columns |= {f"p_{name}": probability[:, k] for k, name in enumerate(task.classes)}
    with atomic(output / PREDICTIONS) as temporary:
        pq.write_table(pa.table(columns), temporary)
    write_text(output / RESULT, json.dumps(plain(result), indent=1) + "\n")


def plain(value: Any) -> Any:
    """The same, with NaN as null: JSON has no NaN."""
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
    lines = [head, f"{'class':<12}{'train':>7}{'val':>7}{'test':>7}  AUROC (95 % by patients)"]
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
        r = _read_result(Path(path))
        lines.append(f"{r['task']:<12}{r['fraction']:>8.0%}  {_score(r):<32}{r['encoder']}")
    return "\n".join(lines)


def _read_result(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: give result.json files that `python -m trainer.transfer` wrote")
    try:
        result = json.loads(path.read_text())
        if isinstance(result["auroc"], float) and not {"task", "fraction", "encoder", "low", "high"} - set(result):
            return dict(result)
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is no result.json that `python -m trainer.transfer` wrote")


def _score(scored: dict[str, Any]) -> str:
    """AUROC with its interval; without resamples there is none."""
    low, high = scored["low"], scored["high"]
    known = None not in (low, high) and math.isfinite(low + high)
    return f"{scored['auroc']:.3f} " + (f"({low:.3f} to {high:.3f})" if known else "(no interval)")


def _line(name: str, counts: Sequence[int], scored: dict[str, Any] | None) -> str:
    value = _score(scored) if scored else "not scored"
    return f"{name:<12}{counts[0]:>7}{counts[1]:>7}{counts[2]:>7}  {value}"


if __name__ == "__main__":
    command(main)
