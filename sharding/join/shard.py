"""Writes one shard of a joined set: a part's shard under new keys, less the patients who leave it, plus those who come.

Arrays and metadata are copied as they are. A window that comes to a patient who has an equal one is left out.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import build_state, equal
from sharding.finish import record_rows, tables
from sharding.join.parts import Part, label_types
from sharding.join.place import NONE, Base
from sharding.join.state import State, read
from sharding.plan import ShardPlan
from sharding.shard import Tally, write_stats
from sharding.sources.protocol import read_at
from sharding.writer import ShardWriter
from umbra.errors import UserError
from umbra.files import atomic, sha256, write_text
from umbra.schema import BLOCK, DTYPE, Geometry, npy_header

COLUMNS = {
    "shard": pa.int32(),
    "index": pa.int32(),
    "key": pa.string(),
    "patient": pa.int64(),
    "source": pa.string(),
    "age": pa.float32(),
    "sex": pa.string(),
    "codes": pa.list_(pa.string()),
    "leads": pa.list_(pa.string()),
}
RECORD_COLUMNS = ("record", "window", "reason", "detail", "key")


def join_shard(output: Path, shard: ShardPlan, tick: Any = None) -> None:
    """The tar, its rows of both tables, its stats last. `tick(1)` after each sample.

    Raises `UserError` if a part's shard is missing or not as its manifest says.
    """
    started, state = time.time(), read(output)
    base = state.bases[shard.ordinal]
    rows = pa.concat_tables([rows_of(state.parts, base.part, base.number), *_arrivals(state, shard.ordinal)])
    leaving = state.moves.filter(pc.equal(state.moves.column("place"), shard.ordinal)).column("patient")
    rows = _together(rows.filter(pc.invert(pc.is_in(rows.column("patient"), leaving.combine_chunks()))))
    try:
        tally, count, digest, geometry = _write_tar(output, state, base, shard, rows, tick)
    except UserError as error:
        with contextlib.suppress(OSError):
            write_text(build_state.failure_path(output, shard.name), f"{error}\n")
        raise
    _write_rows(output, state, base, shard, rows, tally)
    write_stats(output, shard, tally, count, digest, geometry, started)


def rows_of(parts: Sequence[Part], part: int, number: int) -> pa.Table:
    """The rows of one shard (NONE: none) of a part, with the columns of the joined table and `part`."""
    whole = parts[part].samples
    rows = whole.schema_arrow.empty_table() if number == NONE else whole.read_row_group(number)
    columns = {}
    for name, kind in (COLUMNS | label_types(parts)).items():
        if name in rows.column_names:
            columns[name] = rows.column(name).cast(kind)
        elif name == "leads":  # of before it was kept: all leads were there
            columns[name] = pa.array([parts[part].manifest.leads] * len(rows), kind)
        else:
            columns[name] = pa.nulls(len(rows), kind)
    return pa.table(columns | {"part": pa.array([part] * len(rows), pa.int32())})


def _arrivals(state: State, ordinal: int) -> Iterator[pa.Table]:
    """The rows that come to a shard from others."""
    moves = state.moves.filter(pc.equal(state.moves.column("home"), ordinal))
    for place in moves.column("place").unique().to_pylist():
        base, here = state.bases[place], pc.equal(moves.column("place"), place)
        rows = rows_of(state.parts, base.part, base.number)
        yield rows.filter(pc.is_in(rows.column("patient"), moves.filter(here).column("patient").combine_chunks()))


def _together(rows: pa.Table) -> pa.Table:
    """Rows in the order of their patients' first ones, so that a patient's lie next to each other."""
    _, first, inverse = np.unique(rows.column("patient").to_numpy(), return_index=True, return_inverse=True)
    return rows.take(pa.array(np.argsort(first[inverse], kind="stable")))


# ---- the tar ----


def _write_tar(
    output: Path, state: State, base: Base, shard: ShardPlan, rows: pa.Table, tick: Any
) -> tuple[Tally, int, str, Geometry]:
    """Writes the samples `rows` -> (tally whose rows have places in `rows`, samples, sha256, geometry)."""
    first = state.parts[0].manifest
    geometry = Geometry(len(first.leads), first.samples, max(part.manifest.meta_bytes for part in state.parts))
    tally, leads = Tally.of_leads(geometry.leads), np.array(first.leads)
    _refuse_damaged(state, base)
    tars, present = [_Tars(part) for part in state.parts], lru_cache(partial(np.isin, leads))
    repeated = _repeated(rows, base)
    with atomic(output / shard.name) as path, open(path, "wb", buffering=1 << 20) as file:
        writer = ShardWriter(file, geometry, shard.ordinal)
        columns = (rows.column(c).to_pylist() for c in ("part", "shard", "index", "key", "patient", "leads"))
        for place, (part, number, index, key, patient, there) in enumerate(zip(*columns)):
            units, meta = tars[part].sample(number, index, key)
            if repeated(patient, units, (part, number)):
                tally.reject(place, None, "duplicate_record", "an equal window of this patient stands in another part")
            else:
                flags = json.loads(meta).get("flags", [])
                real = present(tuple(there)) * (_length(units) if "padded" in flags else geometry.samples)
                tally.keep(place, 0, writer.add(units, meta.ljust(geometry.meta_bytes)), units, real)
                tally.flags.update(flags)
            if tick is not None:
                tick(1)
        digest = writer.close()
    if not writer.count:
        (output / shard.name).unlink()
    _take_counts(state, base, tally, rows)
    return tally, writer.count, digest, geometry


def _repeated(rows: pa.Table, base: Base) -> Callable[[int, NDArray[np.int16], tuple[int, int]], bool]:
    """A test, in the order of `rows`, whether a window that came from elsewhere is one that its patient has already."""
    came = set(rows.filter(pc.not_equal(_places(rows), _place(base))).column("patient").to_pylist())
    seen: set[tuple[int, int]] = set()

    def repeated(patient: int, units: NDArray[np.int16], where: tuple[int, int]) -> bool:
        if patient not in came:
            return False
        this = (patient, equal.checksum(units))
        known = this in seen
        seen.add(this)
        return known and where != (base.part, base.number)

    return repeated


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
        raise UserError(f"{path} has another sha256 than its manifest says: copy or build that part again")


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
        good = len(data) == self._stride and data[BLOCK : self._first] == self._header
        if not good or not data.startswith(f"{key}.ecg.npy\0".encode()):
            raise UserError(f"{path}: sample {key} is not where it should be: copy or build that part again")
        array = np.frombuffer(data[self._first : self._end], DTYPE).reshape(self._shape)
        return array, data[self._meta].rstrip(b" \0")


# ---- the tables ----


def _write_rows(output: Path, state: State, base: Base, shard: ShardPlan, rows: pa.Table, tally: Tally) -> None:
    """The shard's rows of `samples.parquet`, with check sums, and of `records.parquet`."""
    kept = [row for row in tally.rows if row[4] is not None]
    samples = rows.take(pa.array([row[0] for row in kept], pa.int64()))
    changed = {
        "index": pa.array(range(len(kept)), pa.int32()),
        "key": pa.array([row[4] for row in kept], pa.string()),
        "signal": pa.array([row[5] for row in kept], pa.int64()),
    }
    columns = {name: samples.column(name) for name in samples.column_names if name != "part"} | changed
    with atomic(build_state.rows_path(output, shard.name)) as path:
        pq.write_table(pa.table(columns), path)
    with atomic(build_state.records_path(output, shard.name)) as path:
        pq.write_table(_records(state, base, shard, rows, tally), path)


def _records(state: State, base: Base, shard: ShardPlan, rows: pa.Table, tally: Tally) -> pa.Table:
    """What became of the records of a shard's samples, in their order, then of those of its base that gave none."""
    group_of = {(b.part, b.number): b.group for b in state.bases if b.number != NONE}
    group_of[base.part, base.number] = base.group
    where = list(zip(rows.column("part").to_pylist(), rows.column("shard").to_pylist()))
    keys = rows.column("key").to_pylist()
    known: dict[tuple[int, str], dict[str, Any]] = {}
    rest: list[dict[str, Any]] = []
    for part, number in dict.fromkeys([(base.part, base.number), *where]):
        here = {key for key, at in zip(keys, where) if at == (part, number)}
        of_group = _group(state.parts[part], group_of[part, number], here)
        kept = [row for row in of_group if row["key"] is not None]
        known |= {(part, row["key"]): row for row in kept if row["key"] in here}
        named = {row["record"]: row["key"] in here for row in kept}  # a record moves as a whole
        at_base = (part, number) == (base.part, base.number)
        rest += [row for row in of_group if row["key"] is None and named.get(row["record"], at_base)]
    out = [known[part, key] | {"key": None} for (part, _), key in zip(where, keys)]
    for place, _, why, detail, key, _ in tally.rows:
        out[place] |= {"key": key, "reason": why, "detail": detail}
    columns: list[Any] = [[row[name] for row in out + rest] for name in RECORD_COLUMNS]
    return record_rows(columns[0], columns[1], columns[2], columns[3], columns[4], shard)


def _group(part: Part, group: int, keys: set[str]) -> list[dict[str, Any]]:
    """The rows of a part's `records.parquet` of one shard; without it, the samples `keys` as records of their own."""
    if group == NONE:
        blank = dict.fromkeys(RECORD_COLUMNS)
        return [blank | {"record": f"{part.label}:{key}", "key": key} for key in sorted(keys)]
    with pq.ParquetFile(tables(part.path)[1]) as file:
        rows = file.read_row_group(group).to_pylist()
    return [row | {"record": f"{part.label}:{row['record']}"} for row in rows]
