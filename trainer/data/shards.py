"""A split of a sharded data set as one memory-mapped array: a batch is a gather, with no parsing."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding.config import UserError
from sharding.schema import DTYPE, SAMPLES, SPLITS, Geometry, read_manifest


class Shards:
    """The samples of one split, 0 to `count - 1`; sample *i* is row `rows[i]` of `samples.parquet`.

    Raises `UserError` for a missing or unfinished data set, an empty split, and a shard that is missing or has not the
    size that the manifest states.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.manifest = Path(root), read_manifest(root)
        if split not in SPLITS:
            raise UserError(f"split '{split}' is unknown; use one of {', '.join(SPLITS)}")
        self.split, self.shards = split, self.manifest.of_split(split)
        self.counts = tuple(s.samples for s in self.shards)
        self.count = sum(self.counts)
        if not self.count:
            raise UserError(f"{root} has no sample in split '{split}'; build it with a share for that split")
        first = self.manifest.first_row(split)
        self.rows = range(first, first + self.count)
        self.resolution_mv = self.manifest.resolution_uv / 1000
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        for shard in self.shards:
            self._check(self.root / shard.name, shard.bytes)
        self._map = lru_cache(maxsize=512)(self._mapped)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.int16]) -> NDArray[np.int16]:
        """Copies the samples at `indices` [n] into `out`, int16 [n, leads, samples], and returns it."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            here = np.nonzero(shards == shard)[0]
            out[here] = self._map(int(shard))[indices[here] - self._starts[shard]]
        return out

    def read_mv(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples at `indices` in mV, float32 [n, leads, samples]."""
        shape = (len(indices), len(self.manifest.leads), self.manifest.samples)
        return self.gather(indices, np.empty(shape, DTYPE)) * np.float32(self.resolution_mv)

    def table(self) -> pa.Table:
        """The rows of `samples.parquet` of this split, in sample order."""
        path = self.root / SAMPLES
        if not path.is_file():
            raise UserError(f"{path} does not exist: the data set is not complete; run the same build again")
        return pq.read_table(path).slice(self.rows.start, self.count)

    def _check(self, path: Path, size: int) -> None:
        if not path.is_file():
            raise UserError(f"shard {path} is missing: run the same build again")
        if path.stat().st_size != size:
            raise UserError(
                f"shard {path} has {path.stat().st_size} bytes, its manifest says {size}: it was cut or overwritten; "
                "delete it and run the same build again"
            )

    def _mapped(self, shard: int) -> NDArray[np.int16]:
        return map_shard(self.root / self.shards[shard].name, self.manifest.geometry, self.counts[shard])


def map_shard(path: str | os.PathLike[str], geometry: Geometry, count: int) -> NDArray[np.int16]:
    """A shard as a read-only int16 array [count, leads, samples], memory-mapped."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    return np.ndarray(
        (count, geometry.leads, geometry.samples),
        DTYPE,
        raw,
        geometry.first,
        (geometry.stride, geometry.samples * DTYPE.itemsize, DTYPE.itemsize),
    )
