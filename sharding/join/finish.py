"""From joined shards to a data set: both tables and, last, the manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding import build_state, equal, progress
from sharding.finish import (
    Cells,
    Outcome,
    TableWriter,
    count_cells,
    new_cells,
    record_rows,
    tables,
    write_manifest,
    write_records_hash,
)
from sharding.join.parts import Part
from sharding.join.rows import WINDOW_FLAGS
from sharding.plan import Plan
from umbra.errors import UserError
from umbra.files import atomic
from umbra.parquet import AGAIN, Table


def finish(output: Path, plan: Plan, parts: Sequence[Part]) -> Outcome:
    """Writes `samples.parquet`, `private/records.parquet` and, last, the manifest, from what the shards left."""
    done = build_state.finished(output, plan)
    stats = [done[s.name] for s in plan.shards]
    kept = [(s, t) for s, t in zip(plan.shards, stats) if t["samples"]]
    if not any(s.split == "train" for s, _ in kept):
        raise UserError("no sample is left in the train split: all its patients are held out in another part")
    cells, patients = _write_tables(output, plan, parts, {s.name: i for i, (s, _) in enumerate(kept)})
    first = parts[0].manifest
    facts = (first.rate, first.leads, first.samples, first.resolution_uv)
    rejected, of_shards = (sum((Counter(t[k]) for t in stats), Counter[str]()) for k in ("rejected", "flags"))
    flags, counted = _flags(parts, of_shards)
    write_manifest(output, plan, kept, cells, flags if counted else None, _config(parts), *facts)
    remarks = [*progress.remarks(plan, flags), *equal.remarks(output)]
    return Outcome("built", sum(t["samples"] for _, t in kept), patients, len(kept), rejected, flags, 0, remarks)


def _flags(parts: Sequence[Part], of_shards: Counter[str]) -> tuple[Counter[str], bool]:
    """(flags of the kept windows, whether every part's build counted all of them).

    Of a part without private tables nobody knows which windows have `WINDOW_FLAGS`: its own numbers are added, windows
    that were dropped as duplicates included.
    """
    flags, counted = +of_shards, True
    for part in parts:
        own = part.manifest.counts.get("flags")
        counted = counted and own is not None
        if part.plan is None:
            flags.update({flag: n for flag, n in (own or {}).items() if flag in WINDOW_FLAGS})
    return flags, counted


def _config(parts: Sequence[Part]) -> dict[str, Any]:
    """The public config: what the built sets in it were built with. A set of a joined part is named by itself."""
    leaves = [leaf for part in parts for leaf in part.leaves]
    return {"source": {"name": "+".join(dict.fromkeys(leaf["name"] for leaf in leaves))}, "parts": leaves}


def _write_tables(output: Path, plan: Plan, parts: Sequence[Part], number: dict[str, int]) -> tuple[Cells, int]:
    """Writes both tables and the list of equal signals -> (cells of the samples, their patients)."""
    cells, patients = new_cells(), 0
    unlike: list[tuple[str, equal.Unlike]] = []
    signals, whose = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    public, private = tables(output)
    with atomic(public) as samples_path, atomic(private) as records_path, contextlib.ExitStack() as stack:
        samples, records = TableWriter(samples_path, stack), TableWriter(records_path, stack)
        for shard in plan.shards:
            records.write(Table(build_state.records_path(output, shard.name), AGAIN).read())
            if shard.name not in number:
                continue
            rows = Table(build_state.rows_path(output, shard.name), AGAIN).read()
            signals.append(rows.column("signal").to_numpy())
            place = pa.array([number[shard.name]] * len(rows), pa.int32())
            unlike += _unlike(rows)
            rows = rows.drop_columns(["signal", "unlike"]).set_column(0, "shard", place)
            samples.write(rows)
            count_cells(cells, rows)
            whose.append(rows.column("patient").to_numpy())
            patients += pc.count_distinct(rows.column("patient")).as_py()  # none has samples in another shard
        for rows in _never_planned(parts):
            records.write(rows)
    write_records_hash(output)
    equal.write(output, np.concatenate(signals), np.concatenate(whose))
    equal.write_unlike(output, unlike)
    return cells, patients


def _unlike(rows: pa.Table) -> Iterator[tuple[str, equal.Unlike]]:
    """Key and cell of a shard's kept windows that a dropped copy contradicts."""
    for key, cells in zip(rows.column("key").to_pylist(), rows.column("unlike").to_pylist()):
        yield from ((key, equal.Unlike(**cell)) for cell in cells)


def _never_planned(parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The records that no shard of the parts was planned with."""
    for part in parts:
        if part.plan is None:
            continue
        table = Table(tables(part.path)[1], AGAIN)
        for group in range(len(part.plan.shards), len(table.groups)):
            rows = table.group(group)
            names = [f"{part.label}:{record}" for record in rows.column("record").to_pylist()]
            window, reason, detail, key = (rows.column(c).to_pylist() for c in ("window", "reason", "detail", "key"))
            reader = rows.column("reader").to_pylist() if "reader" in rows.column_names else [""] * len(rows)
            yield record_rows(names, window, reason, detail, key, reader, None)
