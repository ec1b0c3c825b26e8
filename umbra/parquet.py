"""Parquet files that may be damaged: opened and read here alone, so that damage is one line. Needs pyarrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from umbra.errors import UserError
from umbra.files import damaged
from umbra.schema import SAMPLES, Manifest

AGAIN = "run the same build again"


class Table:
    """A parquet file, open for reading: `schema`, column `names`, number of `rows`, rows of each row group (`groups`).

    Every call raises `UserError`, which ends in `fix`, if the file is missing, damaged or lacks a column.
    """

    def __init__(self, path: Path, fix: str, memory_map: bool = False) -> None:
        self.path, self._fix = path, fix
        if not path.is_file():
            raise UserError(f"{path} is missing: {fix}")
        with self._reading():
            self._file = pq.ParquetFile(path, memory_map=memory_map)
            self.schema: pa.Schema = self._file.schema_arrow
        self.names: list[str] = self.schema.names
        known = self._file.metadata
        self.rows: int = known.num_rows
        self.groups: list[int] = [known.row_group(i).num_rows for i in range(known.num_row_groups)]

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows."""
        with self._reading(columns):
            return self._file.read(columns)

    def group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group."""
        with self._reading(columns):
            if number >= len(self.groups):
                raise ValueError(f"it has {len(self.groups)} row groups")
            return self._file.read_row_group(number, columns)

    def batches(self, columns: Sequence[str], size: int = 1 << 16) -> Iterator[pa.RecordBatch]:
        """All rows, at most `size` at a time."""
        with self._reading(columns):
            batches = self._file.iter_batches(size, columns=columns)
        while True:
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def _reading(self, columns: Sequence[str] | None = None) -> Iterator[None]:
        try:
            if missing := [name for name in columns or () if name not in self.names]:
                raise ValueError(f"it has no column '{missing[0]}'")
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(self.path, error, self._fix) from error


def open_samples(root: Path, manifest: Manifest, fix: str = AGAIN) -> Table:
    """`samples.parquet` of a data set. Raises `UserError` if it is missing, damaged or not of this manifest."""
    table = Table(root / SAMPLES, fix)
    wanted = sum(shard.samples for shard in manifest.shards)
    if table.rows != wanted:
        raise UserError(f"{table.path} has {table.rows} rows for {wanted} samples of its manifest: {fix}")
    return table
