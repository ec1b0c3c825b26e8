"""Reads the tables of a data set: counts, a seeded random sample of windows, rejections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sharding import deidentify
from umbra.parquet import AGAIN, Table, open_samples
from umbra.schema import PRIVATE, Manifest

Array = NDArray[Any]

SAMPLE = 2000
BATCH_ROWS = 1 << 16
CANDIDATES = 12


@dataclass
class Counts:
    """Windows by source, sex, age band, code and split, and `patients` and shards by split, from `samples.parquet`;
    `picked`: row numbers of each source in random order, at most `SAMPLE`."""

    source: Counter[str] = field(default_factory=Counter)
    sex: Counter[str] = field(default_factory=Counter)
    age: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    split: Counter[str] = field(default_factory=Counter)
    patients: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)
    picked: dict[str, Array] = field(default_factory=dict)


def count(output: Path, manifest: Manifest) -> Counts:
    """Reads `samples.parquet` batch by batch. Raises `UserError` if it is missing or does not match the manifest."""
    counts, draw = Counts(), _Draw(SAMPLE)
    split_of = np.array([s.split for s in manifest.shards])
    counts.shards.update(split_of.tolist())
    last: tuple[int, int] | None = None
    columns = ["shard", "patient", "source", "age", "sex", "codes"]
    for batch in open_samples(output, manifest).batches(columns, BATCH_ROWS):
        source = pc.fill_null(batch.column("source"), "unknown")
        draw.add(source)
        counts.source.update(_values(source))
        counts.sex.update(_values(pc.fill_null(batch.column("sex"), "unknown")))
        counts.codes.update(_values(pc.list_flatten(batch.column("codes"))))
        whole = pc.fill_null(batch.column("age").cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        for years, windows in zip(*np.unique(whole, return_counts=True)):
            counts.age[deidentify.age_band(float(years))] += int(windows)
        shard, patient = batch.column("shard").to_numpy(), batch.column("patient").to_numpy()
        # a patient's windows are contiguous in one shard: each change starts a new patient
        new = np.r_[last != (shard[0], patient[0]), (np.diff(shard) != 0) | (np.diff(patient) != 0)]
        counts.split.update(dict(zip(*_unique(split_of[shard]))))
        counts.patients.update(dict(zip(*_unique(split_of[shard][new]))))
        last = shard[-1], patient[-1]
    share = max(1, SAMPLE // max(1, len(counts.source)))
    counts.picked = {name: rows[:share] for name, rows in draw.drawn.items()}
    return counts


@dataclass
class _Draw:
    """A random sample of at most `most` row numbers for each word of a column that is read in batches."""

    most: int
    rows: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    lots: dict[str, Array] = field(default_factory=dict)
    drawn: dict[str, Array] = field(default_factory=dict)

    def add(self, words: pa.Array) -> None:
        lots = self.random.random(len(words))
        for word in words.unique().drop_null().to_pylist():
            mine = np.flatnonzero(pc.fill_null(pc.equal(words, word), False).to_numpy(zero_copy_only=False))
            every = np.r_[self.lots.get(word, np.zeros(0)), lots[mine]]
            rows = np.r_[self.drawn.get(word, np.zeros(0, np.int64)), self.rows + mine]
            first = np.argsort(every, kind="stable")[: self.most]
            self.lots[word], self.drawn[word] = every[first], rows[first]
        self.rows += len(words)


def _values(column: pa.Array) -> dict[str, int]:
    return {cell["values"]: cell["counts"] for cell in column.drop_null().value_counts().to_pylist()}


def _unique(values: Array) -> tuple[list[Any], list[int]]:
    unique, counts = np.unique(values, return_counts=True)
    return unique.tolist(), counts.tolist()


def rows_at(path: Path, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Some rows of a parquet file by their numbers, row group by row group."""
    found: dict[int, dict[str, Any]] = {}
    first = 0
    table = Table(path, AGAIN)
    for group, length in enumerate(table.groups):
        inside = [row for row in wanted if first <= row < first + length]
        if inside:
            part = table.group(group).take([row - first for row in inside])
            found.update(zip(inside, part.to_pylist()))
        first += length
    return found


def rejections(output: Path) -> tuple[Counter[str], dict[str, list[dict[str, Any]]]] | None:
    """(rejected by reason, some random rows of `records.parquet` for each reason); None if that file is missing."""
    path = output / PRIVATE / "records.parquet"
    if not path.is_file():
        return None
    reasons: Counter[str] = Counter()
    draw = _Draw(CANDIDATES)
    for batch in Table(path, AGAIN).batches(["reason"], BATCH_ROWS):
        reasons.update(_values(batch.column("reason")))
        draw.add(batch.column("reason"))
    rows = rows_at(path, [row for rows in draw.drawn.values() for row in rows.tolist()])
    return reasons, {reason: [rows[row] for row in some.tolist()] for reason, some in draw.drawn.items()}
