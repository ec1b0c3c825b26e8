"""The rows of one shard of a joined set: which samples it takes, and its part of both tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding import build_state, equal
from sharding.finish import record_rows, tables
from sharding.join.copies import Copies, changed
from sharding.join.parts import Part, label_types
from sharding.join.place import NONE
from sharding.join.state import State
from sharding.plan import ShardPlan
from sharding.shard import Tally
from umbra.files import atomic
from umbra.parquet import AGAIN, Table

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
RECORD_COLUMNS = ("record", "window", "reason", "detail", "key", "reader")


def of_shard(state: State, ordinal: int) -> pa.Table:
    """The samples of a joined shard in order: those of its base but of patients who leave, and those who come. Their
    places (`part`, `shard`, `index`, `key`) are those in the parts."""
    base = state.bases[ordinal]
    rows = pa.concat_tables([_rows(state.parts, base.part, base.number), *_arrivals(state, ordinal)])
    leaving = state.moves.filter(pc.equal(state.moves.column("place"), ordinal)).column("patient")
    return _together(rows.filter(pc.invert(pc.is_in(rows.column("patient"), leaving.combine_chunks()))))


def _rows(parts: Sequence[Part], part: int, number: int) -> pa.Table:
    """The rows of one shard (NONE: none) of a part, with the columns of the joined table and `part`."""
    whole = parts[part].samples
    rows = whole.schema.empty_table() if number == NONE else whole.group(number)
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
        rows = _rows(state.parts, base.part, base.number)
        yield rows.filter(pc.is_in(rows.column("patient"), moves.filter(here).column("patient").combine_chunks()))


def _together(rows: pa.Table) -> pa.Table:
    """Rows in the order of their patients' first ones, so that a patient's lie next to each other."""
    _, first, inverse = np.unique(rows.column("patient").to_numpy(), return_index=True, return_inverse=True)
    return rows.take(pa.array(np.argsort(first[inverse], kind="stable")))


# How the details of kept windows in `records.parquet` say the flags that are not in the samples' metadata.
WINDOW_FLAGS = {"at_limit": "at the converter's limits", "still_ends": "no lead changes"}


def write(output: Path, state: State, shard: ShardPlan, rows: pa.Table, copies: Copies, tally: Tally) -> None:
    """The shard's rows of `samples.parquet`, with check sums, and of `records.parquet`, whose flags of kept windows
    are added to the tally."""
    kept = [row for row in tally.rows if row[4] is not None]
    samples = changed(rows, copies.cells).take(pa.array([row[0] for row in kept], pa.int64()))
    new = {
        "index": pa.array(range(len(kept)), pa.int32()),
        "key": pa.array([row[4] for row in kept], pa.string()),
        "signal": pa.array([row[5] for row in kept], pa.int64()),
        "unlike": pa.array([[asdict(u) for u in copies.unlike.get(row[0], [])] for row in kept], equal.UNLIKE),
    }
    columns = {name: samples.column(name) for name in samples.column_names if name != "part"} | new
    with atomic(build_state.rows_path(output, shard.name)) as path:
        pq.write_table(pa.table(columns), path)
    records = _records(state, shard, rows, tally)
    tally.flags.update(window_flags(records))
    with atomic(build_state.records_path(output, shard.name)) as path:
        pq.write_table(records, path)


def window_flags(records: pa.Table) -> Counter[str]:
    """How many kept windows have which of `WINDOW_FLAGS`."""
    details = records.filter(pc.is_valid(records.column("key"))).column("detail").to_pylist()
    return Counter(flag for detail in details for flag, words in WINDOW_FLAGS.items() if words in (detail or ""))


def _records(state: State, shard: ShardPlan, rows: pa.Table, tally: Tally) -> pa.Table:
    """What became of the records of a shard's samples, in their order, then of those of its base that gave none."""
    base = state.bases[shard.ordinal]
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
        out[place] |= {"key": key, "reason": why} | ({"detail": detail} if why else {})  # kept: the build's remarks
    # parts built by 0.1.0 have no `reader`
    columns: list[Any] = [[row.get(name) for row in out + rest] for name in RECORD_COLUMNS]
    return record_rows(columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], shard)


def _group(part: Part, group: int, keys: set[str]) -> list[dict[str, Any]]:
    """The rows of a part's `records.parquet` of one shard; without it, the samples `keys` as records of their own."""
    if group == NONE:
        blank = dict.fromkeys(RECORD_COLUMNS)
        return [blank | {"record": f"{part.label}:{key}", "key": key} for key in sorted(keys)]
    rows = Table(tables(part.path)[1], AGAIN).group(group).to_pylist()
    return [row | {"record": f"{part.label}:{row['record']}"} for row in rows]
