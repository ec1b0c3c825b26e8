"""A classification task: the class of each record of a sharded data set, per split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.data.shards import Shards
from trainer.evaluate.scores import scorable
from umbra.errors import UserError, near_miss
from umbra.schema import SPLITS

FEWEST = 2


@dataclass
class TaskConfig:
    """Which records belong to which class."""

    name: str = ""
    """Name of the task."""
    column: str = "codes"
    """The label column of samples.parquet."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Class -> values: a record belongs to the first class that lists its value (for `codes`: one of its codes).
    Empty: each value is a class."""
    data: str = ""
    """The folder of the sharded data set."""


@dataclass(frozen=True)
class Labelled:
    """The labelled records of one split: index in the split, class number, patient code."""

    shards: Shards
    index: np.ndarray
    label: np.ndarray
    patient: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """Row numbers in samples.parquet."""
        return self.index + self.shards.rows.start

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: np.ndarray) -> Labelled:
        return Labelled(self.shards, self.index[chosen], self.label[chosen], self.patient[chosen])


@dataclass(frozen=True)
class Task:
    """The labelled records of the three splits, the classes with train examples, and notes on what was left out."""

    name: str
    classes: list[str]
    train: Labelled
    val: Labelled
    test: Labelled
    notes: list[str]

    def counts(self, train: Labelled) -> dict[str, dict[str, int]]:
        parts = {"train": train, "val": self.val, "test": self.test}
        return {s: {c: int((p.label == k).sum()) for k, c in enumerate(self.classes)} for s, p in parts.items()}


def read_task(config: TaskConfig) -> Task:
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
            f"{', '.join(names) or '(none)'}, two are needed: do the `classes` match column '{config.column}'?"
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


def _labelled(shards: Shards, config: TaskConfig) -> tuple[Shards, list[str | None]]:
    """The class name of each record of a split, None if it has none."""
    table = shards.table()
    if config.column not in table.column_names:
        raise UserError(
            f"task '{config.name}': label column '{config.column}' is not in {config.data}/samples.parquet"
            f"{near_miss(config.column, table.column_names)}"
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
    """Indices of a subset of the records: of each class `fraction` of its records, at least 2 (or all there are).

    Records are taken patient by patient, in an order drawn from `seed`, so that few labels come from few patients; a
    larger fraction contains a smaller one.
    """
    unique, inverse = np.unique(patient, return_inverse=True)
    turn = np.random.default_rng([seed, 0x7A]).permutation(len(unique))[inverse]
    order = np.argsort(turn, kind="stable")
    chosen = []
    for k in np.unique(label):
        members = order[label[order] == k]
        chosen.append(members[: max(FEWEST, math.ceil(fraction * len(members) - 1e-9))])
    return np.sort(np.concatenate(chosen))
