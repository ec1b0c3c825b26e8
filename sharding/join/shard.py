"""Writes one shard of a joined set: a part's shard under new keys, less the patients who leave it, plus those who come.

Arrays are copied as they are, and metadata but of windows with `copies`: those that come to a patient who has an equal
one are left out.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sharding import build_state
from sharding.join import rows as joined_rows
from sharding.join.copies import Copies
from sharding.join.copies import find as find_copies
from sharding.join.parts import Part
from sharding.join.place import NONE, Base
from sharding.join.state import State, read
from sharding.plan import ShardPlan
from sharding.shard import Tally, write_stats
from sharding.sources.protocol import read_at
from sharding.writer import ShardWriter
from umbra.errors import UserError
from umbra.files import atomic, sha256, write_text
from umbra.schema import BLOCK, DTYPE, Geometry, npy_header


def join_shard(output: Path, shard: ShardPlan, tick: Any = None) -> None:
    """The tar, its rows of both tables, its stats last. `tick(1)` after each sample.

    Raises `UserError` if a part's shard is missing or not as its manifest says.
    """
    started, state = time.time(), read(output)
    base = state.bases[shard.ordinal]
    rows = joined_rows.of_shard(state, shard.ordinal)
    try:
        copies, tally, count, digest, geometry = _write_tar(output, state, base, shard, rows, tick)
    except UserError as error:
        with contextlib.suppress(OSError):
            write_text(build_state.failure_path(output, shard.name), f"{error}\n")
        raise
    joined_rows.write(output, state, shard, rows, copies, tally)
    write_stats(output, shard, tally, count, digest, geometry, started)


def _write_tar(
    output: Path, state: State, base: Base, shard: ShardPlan, rows: pa.Table, tick: Any
) -> tuple[Copies, Tally, int, str, Geometry]:
    """Writes the samples `rows` -> (copies among them, tally with their numbers, samples, sha256, geometry)."""
    first = state.parts[0].manifest
    geometry = Geometry(len(first.leads), first.samples, max(part.manifest.meta_bytes for part in state.parts))
    tally, leads = Tally.of(first.leads, first.rate), np.array(first.leads)
    _refuse_damaged(state, base)
    tars, present = [_Tars(part) for part in state.parts], lru_cache(partial(np.isin, leads))
    places = [rows.column(c).to_pylist() for c in ("part", "shard", "index", "key")]

    def read_sample(row: int) -> tuple[NDArray[np.int16], bytes]:
        part, number, index, key = (column[row] for column in places)
        return tars[part].sample(number, index, key)

    copies = find_copies(rows, (base.part, base.number), read_sample, geometry.meta_bytes)
    with atomic(output / shard.name) as path, open(path, "wb", buffering=1 << 20) as file:
        writer = ShardWriter(file, geometry, shard.ordinal)
        for row, there in enumerate(rows.column("leads").to_pylist()):
            if row in copies.dropped:
                tally.reject(row, None, "duplicate_record", "an equal window of this patient stands in another part")
            else:
                units, meta = read_sample(row)
                meta = copies.metadata.get(row, meta)
                flags = json.loads(meta).get("flags", [])
                real = present(tuple(there)) * (_length(units) if "padded" in flags else geometry.samples)
                tally.keep(row, 0, writer.add(units, meta.ljust(geometry.meta_bytes)), units, real, "")
                tally.flags.update(flags)
            if tick is not None:
                tick(1)
        digest = writer.close()
    if not writer.count:
        (output / shard.name).unlink()
    _take_counts(state, base, tally, rows)
    return copies, tally, writer.count, digest, geometry


def _places(rows: pa.Table) -> pa.Array:
    """Part and shard of each row as one number."""
    parts, numbers = (rows.column(c).to_numpy().astype(np.int64) for c in ("part", "shard"))
    return pa.array((parts << 32) + numbers)


def _place(base: Base) -> int:
    return (base.part << 32) + base.number


def _length(units: NDArray[np.int16]) -> int:
    """Samples up to the last that is not zero in all leads: the length of a padded record."""
    return int(np.flatnonzero(units.any(axis=0)).max(initial=-1)) + 1


def _take_counts(state: State, base: Base, tally: Tally, rows: pa.Table) -> None:
    """A shard that nobody left or came to has as many values as its build counted (padding may end in real zeros)."""
    part = state.parts[base.part]
    if base.number == NONE or part.plan is None:
        return
    shard = part.manifest.shards[base.number]
    stats = build_state.read_stats(part.path, shard.name)
    same = len(rows) == shard.samples and pc.all(pc.equal(_places(rows), _place(base))).as_py()
    if same and stats is not None and stats["sha256"] == shard.sha256:
        tally.counts = np.array(stats["counts"], np.int64)


def _refuse_damaged(state: State, base: Base) -> None:
    """Raises `UserError` if a part's shard is not as its manifest says."""
    if base.number == NONE:
        return
    part = state.parts[base.part]
    shard = part.manifest.shards[base.number]
    path = part.path / shard.name
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or build that part again")
    if sha256(path) != shard.sha256:
        raise UserError(f"{path} does not have the sha256 in its manifest: copy or build that part again")


class _Tars:
    """The samples of a part's tars."""

    def __init__(self, part: Part):
        g, self._part = part.manifest.geometry, part
        self._first, self._stride, self._header = g.first, g.stride, npy_header(g.leads, g.samples)
        self._shape, self._end = (g.leads, g.samples), g.first + g.array_bytes
        self._meta = slice(g.stride - -(-g.meta_bytes // BLOCK) * BLOCK, None)

    def sample(self, number: int, index: int, key: str) -> tuple[NDArray[np.int16], bytes]:
        """(int16 `[leads, samples]`, metadata) of a sample of a shard. Raises `UserError` if it is not there."""
        path = self._part.path / self._part.manifest.shards[number].name
        try:
            data = read_at(str(path), index * self._stride, self._stride)
        except FileNotFoundError:
            data = b""
        meta = data[self._meta].rstrip(b" \0")
        good = len(data) == self._stride and data[BLOCK : self._first] == self._header
        if not good or not data.startswith(f"{key}.ecg.npy\0".encode()) or not _is_metadata(meta):
            raise UserError(f"{path}: sample {key} is not where it should be: copy or build that part again")
        array = np.frombuffer(data[self._first : self._end], DTYPE).reshape(self._shape)
        return array, meta


def _is_metadata(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
