"""What an encoder is worth where labels are scarce: linear probe, fine-tuning, training from scratch.

`python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR|random data=DIR output=DIR [fraction=0.1]
[mode=probe|finetune|scratch] [seed=0] [like=DIR]`; `python -m trainer.transfer compare RESULT.json ...` tabulates.

Trained on a fraction of the train split, settings chosen on `val`, tested once on `test`; result.json and
predictions.parquet land in `output`. The tasks are in configs/transfer/, the keys are described in trainer/transfer.py.
"""

from __future__ import annotations

import copy
import difflib
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
from trainer.scores import auroc, bootstrap_auroc, interval, macro_auroc, scorable

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
FEWEST = 2


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
class TransferConfig:
    """A task and how to test an encoder on it.

    `column` of samples.parquet gives the label. With `classes` (class -> values) a record belongs to the first class
    that lists its value (for `codes`: one of its codes); without, each value is a class. `encoder` is a directory, a
    hub id, or `random` (the architecture of `like`, weights from `seed`). `fraction` of the train labels, per class and
    at least 2. `bootstrap` resamples of the test patients.
    """

    name: str = ""
    column: str = "codes"
    classes: dict[str, list[str]] = field(default_factory=dict)
    encoder: str = ""
    like: str = ""
    data: str = ""
    output: str = ""
    mode: str = "probe"
    fraction: float = 1.0
    seed: int = 0
    batch: int = 256
    device: str = "auto"
    bootstrap: int = 2000
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


@dataclass(frozen=True)
class Labelled:
    """The labelled records of one split: place in the split, class number, patient code."""

    shards: Shards
    index: np.ndarray
    label: np.ndarray
    patient: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """Rows of samples.parquet."""
        return self.index + self.shards.rows.start

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: np.ndarray) -> Labelled:
        return Labelled(self.shards, self.index[chosen], self.label[chosen], self.patient[chosen])


@dataclass(frozen=True)
class Task:
    """The labelled records of the three splits, with the classes that have train examples, and what was left out."""

    name: str
    classes: list[str]
    train: Labelled
    val: Labelled
    test: Labelled
    notes: list[str]

    def counts(self, train: Labelled) -> dict[str, dict[str, int]]:
        parts = {"train": train, "val": self.val, "test": self.test}
        return {s: {c: int((p.label == k).sum()) for k, c in enumerate(self.classes)} for s, p in parts.items()}


def main(argv: list[str]) -> None:
    if argv and argv[0] == "compare":
        print(comparison(argv[1:]))
        return
    path = argv[0] if argv and "=" not in argv[0] else None
    config = load(TransferConfig, path, argv[1:] if path else argv)
    _check(config)
    task = read_task(config)
    encoder = open_encoder(config)
    check_fits(encoder, task.test.shards, config)
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


# --- labels ----------------------------------------------------------------------------------------------------------


def read_task(config: TransferConfig) -> Task:
    """Reads the labels of the three splits from samples.parquet.

    Classes without train examples are dropped (and noted). Raises `UserError` for an unknown label column, a missing
    split, fewer than two classes, or a val or test split in which no class can be scored.
    """
    splits = {split: _labelled(Shards(config.data, split), config) for split in SPLITS}
    names = list(config.classes) or sorted({n for _, labels in splits.values() for n in labels if n is not None})
    present = set(splits["train"][1])
    classes = [name for name in names if name in present]
    notes = [f"class {n} has no train examples and is dropped" for n in names if n not in present]
    if len(classes) < 2:
        raise UserError(
            f"task '{config.name}': the train split of {config.data} has {len(classes)} of the classes "
            f"{', '.join(names) or '(none)'}, two are needed: do the values in `classes` fit column '{config.column}'?"
        )
    number = {name: k for k, name in enumerate(classes)}
    parts = {}
    for split, (shards, labels) in splits.items():
        kept = np.array([i for i, name in enumerate(labels) if name in number], dtype=np.int64)
        label = np.array([number[labels[i]] for i in kept], dtype=np.int64)
        patient = shards.table().column("patient").to_numpy()[kept]
        parts[split] = Labelled(shards, kept, label, patient)
        if len(kept) < len(labels):
            notes.append(f"{len(labels) - len(kept)} of {len(labels)} {split} records have none of the classes")
        if split != "train" and not scorable(label, len(classes)):
            raise UserError(f"task '{config.name}': the {split} split has records of fewer than two classes")
        notes += [f"class {n} has no {split} examples" for n in classes if n not in labels]
    return Task(config.name, classes, parts["train"], parts["val"], parts["test"], notes)


def _labelled(shards: Shards, config: TransferConfig) -> tuple[Shards, list[str | None]]:
    """The class name of each record of a split, None where it has none."""
    table = shards.table()
    if config.column not in table.column_names:
        near = difflib.get_close_matches(config.column, table.column_names, n=3, cutoff=0.4) or table.column_names
        raise UserError(
            f"task '{config.name}': label column '{config.column}' is not in {config.data}/samples.parquet; "
            f"nearest columns: {', '.join(near)}"
        )
    values = table.column(config.column).to_pylist()
    return shards, [class_of(value, config.classes) for value in values]


def class_of(value: Any, classes: dict[str, list[str]]) -> str | None:
    """The first class that lists `value` (or one of its items, if it is a list); without classes the value itself."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    values = {str(v) for v in value} if isinstance(value, list) else {str(value)}
    if not classes:
        return None if isinstance(value, list) else str(value)
    return next((name for name, listed in classes.items() if not values.isdisjoint(listed)), None)


def fraction_of(label: np.ndarray, patient: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Places of a share of the records: of each class `fraction` of its records, at least 2 (or all there are).

    Whole patients come one after the other in an order drawn from `seed`, so that few labels are labels of few
    patients; a larger fraction holds every record of a smaller one.
    """
    unique, inverse = np.unique(patient, return_inverse=True)
    turn = np.random.default_rng([seed, 0x7A]).permutation(len(unique))[inverse]
    order = np.argsort(turn, kind="stable")
    chosen = []
    for k in np.unique(label):
        members = order[label[order] == k]
        chosen.append(members[: max(FEWEST, math.ceil(fraction * len(members) - 1e-9))])
    return np.sort(np.concatenate(chosen))


# --- encoders --------------------------------------------------------------------------------------------------------


def open_encoder(config: TransferConfig) -> nn.Module:
    """The encoder that the config names, on its device; randomly initialised for `encoder=random` or `mode=scratch`."""
    name = config.like if config.encoder == "random" else config.encoder
    if config.encoder == "random" or config.mode == "scratch":
        return initialise(read_config(name), config.seed).to(_device(config.device))
    return load_encoder(name, _device(config.device))


def check_fits(encoder: nn.Module, shards: Shards, config: TransferConfig) -> None:
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
        parts = [
            encoder(signals(data.take(np.arange(i, min(i + batch, len(data)))), device)).float().cpu().numpy()
            for i in range(0, len(data), batch)
        ]
    return np.concatenate(parts)


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
