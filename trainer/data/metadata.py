"""Columns of `samples.parquet` by row, and for each sample a partner of the same patient.

A column is converted once to a `.npy` file, which all processes of a machine map: 10 million patient codes take 80 MB
of page cache, whatever the number of processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from trainer.views.random import Key, bits
from umbra.errors import UserError, near_miss
from umbra.files import atomic, damaged, read_json_as, write_text
from umbra.parquet import open_samples
from umbra.schema import SAMPLE_COLUMNS, read_manifest

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """`values` [rows]: numbers (float64 with NaN if integers are missing), or indices into `words` (-1: missing)."""

    values: NDArray
    words: tuple[str, ...] = ()


class Partnering(Protocol):
    """What draws partners, once `prepare` has made its files: see `Metadata`."""

    def prepare(self) -> None: ...

    def partners(self, rows: Rows, seed: int, epoch: int) -> Rows: ...


class Metadata:
    """The columns of a data set's `samples.parquet`, kept as `.npy` files in `folder`.

    Raises `UserError` if the table is missing, damaged or does not match the manifest.
    """

    def __init__(self, root: str | Path, folder: str | Path) -> None:
        manifest = read_manifest(root)
        self._table = open_samples(Path(root), manifest)
        self._path, self._names = self._table.path, self._table.names
        self._counts = [shard.samples for shard in manifest.shards]
        stat = self._path.stat()
        self._folder = Path(folder) / f"columns-{manifest.fingerprint}-{stat.st_size}-{stat.st_mtime_ns}"
        self._fix = f"delete {self._folder}, which is made again"
        self._columns: dict[str, Column] = {}
        self._ends: NDArray[np.int64] | None = None

    @property
    def labels(self) -> list[str]:
        """The label columns that were requested at the build."""
        return [name for name in self._names if name not in SAMPLE_COLUMNS]

    def column(self, name: str) -> Column:
        """A whole column, memory-mapped. Raises `UserError` for an unknown name, or a column of lists."""
        if name not in self._names:
            raise UserError(f"{self._path} has no column '{name}'{near_miss(name, self._names)}")
        if name not in self._columns:
            path = self._folder / f"{self._names.index(name)}.npy"
            if not path.is_file():
                values, words = self._read(name)
                write_text(path.with_suffix(".json"), json.dumps(words))
                _save(path, values)
            words = read_json_as(list[str], path.with_suffix(".json"), self._fix)
            self._columns[name] = Column(self._load(path), tuple(words))
        return self._columns[name]

    def batch(self, rows: Rows, names: list[str] | None = None) -> dict[str, NDArray]:
        """`index` (the rows themselves), `patient` and the labels, or the columns `names`, of the samples at `rows`.

        `rows` int64 of any shape, which is that of each result.
        """
        names = ["patient", *self.labels] if names is None else names
        return {"index": rows, **{name: self.column(name).values[rows] for name in names}}

    def partners(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """For each row another one of the same patient, drawn uniformly; the row itself if there is none.

        All windows of a patient are adjacent in one shard. The draw is a function of (seed, epoch, row).
        """
        ends = self._runs()
        run = np.searchsorted(ends, rows, side="right")
        begin = np.where(run > 0, ends[run - 1], 0)
        others = ends[run] - begin - 1
        key = Key(seed, epoch, torch.from_numpy(np.ascontiguousarray(rows).ravel()))
        drawn = bits(key, "partner").numpy().reshape(rows.shape) * others >> 32
        partner = begin + drawn
        return partner + ((partner >= rows) & (others > 0))

    def prepare(self) -> None:
        """Creates the files that `partners` needs."""
        self._runs()

    def _runs(self) -> NDArray[np.int64]:
        """Where each patient's run of rows ends, ascending; the end of a shard always ends a run."""
        if self._ends is None:
            path = self._folder / "patient-ends.npy"
            if not path.is_file():
                patient = self.column("patient").values
                last = np.ones(len(patient), dtype=bool)
                np.not_equal(patient[1:], patient[:-1], out=last[:-1])
                ends = np.cumsum([n for n in self._counts if n])
                last[ends - 1] = True
                _save(path, np.flatnonzero(last) + 1)
            self._ends = self._load(path)
        return self._ends

    def _load(self, path: Path) -> NDArray:
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, error, self._fix) from error

    def _read(self, name: str) -> tuple[NDArray, list[str]]:
        column = self._table.read([name]).column(0)
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            coded = column.combine_chunks().dictionary_encode()
            words = coded.dictionary.to_pylist()
            order = np.argsort(words, kind="stable")
            places = np.append(np.argsort(order), -1).astype(np.int32)
            return places[pc.fill_null(coded.indices, len(words)).to_numpy()], [words[i] for i in order]
        if pa.types.is_boolean(kind):
            column, kind = column.cast(pa.int8()), pa.int8()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UserError(f"{self._path}: column '{name}' is of type {kind}, neither numeric nor text")
        return column.to_numpy(), []


def _save(path: Path, values: NDArray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)
