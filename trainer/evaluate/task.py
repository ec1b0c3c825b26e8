"""A task: what is to be told of each record of a sharded data set (a class, several labels, numbers), per split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from trainer.data.shards import Shards
from umbra.config import setting

KINDS = ("classes", "labels", "number")
FEWEST = 2


@dataclass
class TaskConfig:
    """What is to be told of each record."""

    name: str = ""
    """Name of the task."""
    kind: str = setting("classes", choices=KINDS)
    """`classes`: one class a record; `labels`: any number of labels a record; `number`: one number or several."""
    column: str = "codes"
    """The label column of samples.parquet."""
    columns: list[str] = field(default_factory=list)
    """Several label columns, in place of `column`: a label each, of 0 and 1 or true and false (`kind: labels`), or a
    number each (`kind: number`)."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Class -> values: a record belongs to the first class that lists its value (for `codes`: one of its codes), with
    `kind: labels` to every one that does. Empty: each value is a class or label."""
    unlabelled: str = setting("keep", choices=("keep", "drop"))
    """With `kind: labels`, a record with none of the labels: `keep` it as negative for all, or `drop` it."""
    data: str = ""
    """The folder of the sharded data set."""

    @property
    def used_columns(self) -> list[str]:
        return self.columns or [self.column]


@dataclass(frozen=True)
class Labelled:
    """The labelled records of one split: index in the split, target, patient code.

    `target` is float32 `[n, K]`: 1 in the column of the record's class (`classes`), 0 or 1 (`labels`), or numbers.
    """

    shards: Shards
    index: np.ndarray
    target: np.ndarray
    patient: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """Row numbers in samples.parquet."""
        return self.index + self.shards.rows.start

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: np.ndarray) -> Labelled:
        return Labelled(self.shards, self.index[chosen], self.target[chosen], self.patient[chosen])


@dataclass(frozen=True)
class Task:
    """The labelled records of the three splits, the names of the target's columns, and notes on what was left out."""

    name: str
    kind: str
    names: list[str]
    train: Labelled
    val: Labelled
    test: Labelled
    notes: list[str]

    def same_records(self, other: Task) -> bool:
        """Whether another task has targets for the same records."""
        pairs = zip((self.train, self.val, self.test), (other.train, other.val, other.test))
        return all(np.array_equal(one.row, two.row) for one, two in pairs)

    def counts(self, train: Labelled) -> dict[str, dict[str, int]]:
        """Records of each class or label (with numbers: of all) by split."""
        parts = {"train": train, "val": self.val, "test": self.test}
        if self.kind == "number":
            return {s: dict.fromkeys(self.names, len(p)) for s, p in parts.items()}
        return {s: {c: int(n) for c, n in zip(self.names, p.target.sum(0))} for s, p in parts.items()}

    def choose(self, fraction: float, seed: int, draw: int = 0) -> np.ndarray:
        """Indices of the train records to use (see `fraction_of`), per class or label, and of those with none."""
        of = self.train.target
        strata = np.ones((len(of), 1), bool) if self.kind == "number" else np.column_stack([of > 0, ~(of > 0).any(1)])
        return fraction_of(strata, self.train.patient, fraction, seed, draw)


def choice(seed: int, draw: int) -> str:
    """Which records a fraction took, as what follows the word seed."""
    return f"{seed}, draw {draw}" if draw else str(seed)


def fraction_of(strata: np.ndarray, patient: np.ndarray, fraction: float, seed: int, draw: int = 0) -> np.ndarray:
    """Indices of a subset of the records: of each stratum (a column of `strata`, bool `[n, S]`, which may overlap)
    `fraction` of its records, at least 2 (or all there are).

    Records are taken patient by patient, in an order drawn from `seed` and `draw`, so that few labels come from few
    patients; a larger fraction contains a smaller one of the same draw.
    """
    unique, inverse = np.unique(patient, return_inverse=True)
    turn = np.random.default_rng([seed, 0x7A, draw]).permutation(len(unique))[inverse]
    order = np.argsort(turn, kind="stable")
    chosen = np.zeros(len(patient), bool)
    for stratum in strata.T:
        members = order[stratum[order]]
        chosen[members[: max(FEWEST, math.ceil(fraction * len(members) - 1e-9))]] = True
    return np.flatnonzero(chosen)
