"""Completes a data set from finished shards: `samples.parquet`, `private/records.parquet` and, last, the manifest.

The hash of the private table stays in `private/`: it could confirm guesses of record names.
"""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import build_state, deidentify, equal, progress
from sharding import plan as planning
from sharding.options import BuildConfig, fix_of, named
from sharding.plan import Plan, ShardPlan
from sharding.shard import WINDOW_COLUMNS
from umbra.errors import UserError
from umbra.files import atomic, remove_partial, sha256, write_text
from umbra.schema import MANIFEST, PRIVATE, SAMPLES, Geometry, Manifest, Shard, content_hash, fingerprint, read_manifest

RECORDS_HASH = "records.sha256"
Cells = dict[str, deidentify.CellCounts]


@dataclass
class Outcome:
    """What a build did: `state` is `built`, `already built` or `waiting` (for shards of other tasks)."""

    state: str
    kept: int = 0
    patients: int = 0
    shards: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    codes_left_out: int = 0
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tables(output: Path) -> tuple[Path, Path]:
    return output / SAMPLES, output / PRIVATE / "records.parquet"


def tables_are_whole(output: Path) -> bool:
    """Whether both tables are those that `finish` wrote. Raises `UserError` for a damaged manifest."""
    manifest, (public, private) = read_manifest(output), tables(output)
    noted = output / PRIVATE / RECORDS_HASH
    if not public.is_file() or not private.is_file():
        return False
    if manifest.tables and sha256(public) != manifest.tables.get(SAMPLES):
        return False
    return not noted.is_file() or noted.read_text(errors="replace").split()[:1] == [sha256(private)]


def finish(output: Path, config: BuildConfig, plan: Plan) -> Outcome:
    """Writes `samples.parquet`, `private/records.parquet` and, last, the manifest, from the stats of all shards."""
    done = build_state.finished(output, plan)
    stats = [done[s.name] for s in plan.shards]
    kept = [(s, t) for s, t in zip(plan.shards, stats) if t["samples"]]
    if not any(s.split == "train" for s, _ in kept):
        reasons = sum((Counter(t["rejected"]) for t in stats), Counter[str]())
        why = f"{named(reasons)}{fix_of(reasons)}" if reasons else "the split is empty"
        raise UserError(f"no window of the train split passed the checks: {why}")
    cells, patients, rejected = _write_tables(output, config, plan, {s.name: i for i, (s, _) in enumerate(kept)})
    facts = (config.rate, config.leads, config.samples, config.resolution_uv)
    flags = sum((Counter(t["flags"]) for t in stats), Counter[str]())
    write_manifest(output, plan, kept, cells, flags, _public_config(plan.content), *facts)
    remarks = [*progress.remarks(plan, flags), *equal.remarks(output)]
    kept_windows = sum(t["samples"] for _, t in kept)
    return Outcome("built", kept_windows, patients, len(kept), rejected, flags, plan.codes_left_out, remarks)


def write_manifest(
    output: Path,
    plan: Plan,
    kept: Sequence[tuple[ShardPlan, Mapping[str, Any]]],
    cells: Cells,
    flags: Mapping[str, int] | None,
    config: dict[str, Any],
    rate: float,
    leads: list[str],
    samples: int,
    resolution_uv: float,
) -> None:
    """Writes the manifest of the `kept` shards, each with its stats, whose tables are written; removes left-overs.

    `flags`: how many kept windows have each flag, None if that is not known.
    """
    counts: dict[str, Any] = {kind: counts.merged() for kind, counts in cells.items()}
    if flags is not None:
        counts["flags"] = dict(sorted(flags.items()))
    shards = [Shard(s.name, s.split, t["samples"], t["bytes"], t["sha256"]) for s, t in kept]
    mean, deviation = moments([t for s, t in kept if s.split == "train"], resolution_uv)
    manifest = Manifest(
        fingerprint=fingerprint(shards, Geometry(len(leads), samples, plan.meta_bytes), rate, leads, resolution_uv),
        rate=rate,
        leads=leads,
        samples=samples,
        resolution_uv=resolution_uv,
        meta_bytes=plan.meta_bytes,
        shards=shards,
        lead_mean_mv=mean,
        lead_std_mv=deviation,
        patient_ids=plan.patient_ids,
        key_id=plan.key_id,
        counts=counts,
        config=config,
        versions=_versions(),
        tables={SAMPLES: sha256(tables(output)[0])},
    )
    for folder in (output, output / PRIVATE, output / PRIVATE / build_state.STATS):
        remove_partial(folder)
    write_text(output / MANIFEST, replace(manifest, content_hash=content_hash(manifest)).to_json())


def _public_config(content: dict[str, Any]) -> dict[str, Any]:
    source = {k: v for k, v in content["source"].items() if k in ("name", "format", "public")}
    split = content["split"]
    if split["column"]:  # its values may be anything, even patient ids
        split = {"column": split["column"]}
    return {**{k: v for k, v in content.items() if k != "key_id"}, "source": source, "split": split}


def _versions() -> dict[str, str]:
    import scipy

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pyarrow": pa.__version__,
    }


def moments(stats: Sequence[Mapping[str, Any]], resolution_uv: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each lead in mV, from exact integer sums: independent of the order."""
    sums, squares, counts = ([sum(v) for v in zip(*(t[k] for t in stats))] for k in ("sums", "squares", "counts"))
    counts = [max(n, 1) for n in counts]
    unit = resolution_uv / 1000.0
    variances = [(q * n - s * s) / (n * n) for s, q, n in zip(sums, squares, counts)]
    return [s / n * unit for s, n in zip(sums, counts)], [v**0.5 * unit for v in variances]


def new_cells() -> Cells:
    return {kind: deidentify.CellCounts() for kind in ("source", "sex", "age", "codes")}


def _write_tables(
    output: Path, config: BuildConfig, plan: Plan, number: dict[str, int]
) -> tuple[Cells, int, Counter[str]]:
    """Writes both tables, shard by shard -> (cells of the kept windows, number of patients, rejections by reason)."""
    cells, patients, signals, whose = new_cells(), 0, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    rejected: Counter[str] = Counter()
    public, private = tables(output)
    with atomic(public) as samples_path, atomic(private) as records_path, contextlib.ExitStack() as stack:
        samples = TableWriter(samples_path, stack)
        records = TableWriter(records_path, stack)
        for shard in plan.shards:
            rows = planning.rows_of_shard(output, shard.ordinal)
            windows = build_state.rows(output, shard.name).read(WINDOW_COLUMNS)
            records.write(_records_of_shard(rows, windows, shard))
            if shard.name in number:
                table = _samples_of_shard(rows, windows, config, number[shard.name])
                samples.write(table)
                count_cells(cells, table)
                signals.append(_signals(windows))
                whose.append(table.column("patient").to_numpy())
                patients += pc.count_distinct(table.column("patient")).as_py()  # no patient is in two shards
            rejected.update(r for r in windows.column("reason").to_pylist() if r)
            over = sum(rows.column("over").to_pylist())
            rejected.update({"patient_overflow": over} if over else {})
        for rows in planning.rejected_rows(output, plan):
            reasons = rows.column("reason").to_pylist()
            rejected.update(reasons)
            records.write(
                record_rows(
                    rows.column("record").to_pylist(),
                    [None] * len(rows),
                    reasons,
                    rows.column("detail").to_pylist(),
                    [None] * len(rows),
                    rows.column("reader").to_pylist(),
                    None,
                )
            )
    write_records_hash(output)
    equal.write(output, np.concatenate(signals), np.concatenate(whose))
    return cells, patients, rejected


def write_records_hash(output: Path) -> None:
    """In the format of `sha256sum`."""
    private = tables(output)[1]
    write_text(output / PRIVATE / RECORDS_HASH, f"{sha256(private)}  {private.name}\n")


class TableWriter:
    """A parquet file to which tables of one schema are appended."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path, self._stack = path, stack
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._path, table.schema))
        self._writer.write_table(table)


def _signals(windows: pa.Table) -> NDArray[np.int64]:
    """Check sums of a shard's kept windows; `equal.UNKNOWN` where a version without them built the shard."""
    kept = windows.filter(pc.is_valid(windows.column("key")))
    if "signal" not in kept.column_names:
        return np.full(len(kept), equal.UNKNOWN)
    found: NDArray[np.int64] = kept.column("signal").to_numpy()
    return found


def _samples_of_shard(rows: pa.Table, windows: pa.Table, config: BuildConfig, number: int) -> pa.Table:
    kept = windows.filter(pc.is_valid(windows.column("key")))
    of_row = rows.take(kept.column("row"))
    count = len(kept)
    return pa.table(
        {
            "shard": pa.array([number] * count, pa.int32()),
            "index": pa.array(range(count), pa.int32()),
            "key": kept.column("key"),
            "patient": of_row.column("patient"),
            "source": of_row.column("part").cast(pa.string()),
            "age": of_row.column("age"),
            "sex": of_row.column("sex"),
            "codes": _lists(of_row.column("codes"), ";"),
            "leads": _lists(of_row.column("leads"), " "),
            **{name: of_row.column(planning.LABEL + name) for name in config.labels},
        }
    )


def _lists(column: pa.ChunkedArray, separator: str) -> pa.Array:
    """Splits text into lists of words (an empty list for empty text)."""
    encoded = pa.concat_arrays(column.dictionary_encode().unify_dictionaries().chunks)
    lists = [[word for word in text.split(separator) if word] for text in encoded.dictionary.to_pylist()]
    return pa.array(lists, pa.list_(pa.string())).take(encoded.indices)


def _records_of_shard(rows: pa.Table, windows: pa.Table, shard: ShardPlan) -> pa.Table:
    names, over, reader = (rows.column(c).to_pylist() for c in ("record", "over", "reader"))
    of, window, reason, detail, key = (windows.column(c).to_pylist() for c in WINDOW_COLUMNS[:5])
    full = [i for i, n in enumerate(over) if n]
    return record_rows(
        [names[i] for i in of] + [names[i] for i in full],
        window + [None] * len(full),
        reason + ["patient_overflow"] * len(full),
        detail + [f"{over[i]} windows" for i in full],
        key + [None] * len(full),
        [reader[i] for i in of] + [reader[i] for i in full],
        shard,
    )


def record_rows(
    record: list[str],
    window: list[int | None],
    reason: list[str],
    detail: list[str],
    key: list[str | None],
    reader: list[str],
    shard: ShardPlan | None,
) -> pa.Table:
    """Rows of `private/records.parquet`; `reader`: the reader of the samples, if the source has several."""
    place = [shard if k is not None else None for k in key]
    return pa.table(
        {
            "record": pa.array(record, pa.string()),
            "window": pa.array(window, pa.int32()),
            "status": pa.array(["kept" if k is not None else "rejected" for k in key], pa.string()),
            "reason": pa.array([r or None for r in reason], pa.string()),
            "detail": pa.array([d or None for d in detail], pa.string()),
            "key": pa.array(key, pa.string()),
            "split": pa.array([s and s.split for s in place], pa.string()),
            "shard": pa.array([s and s.name for s in place], pa.string()),
            "reader": pa.array([r or None for r in reader], pa.string()),
        }
    )


def count_cells(cells: Cells, table: pa.Table) -> None:
    """Adds the samples of one shard, whose patients are in no other shard."""
    patient, source, age, codes = (table.column(c) for c in ("patient", "source", "age", "codes"))
    patients = patient.to_pylist()
    cells["source"].add(zip(source.to_pylist(), patients))
    cells["sex"].add(zip(pc.fill_null(table.column("sex").cast(pa.string()), "unknown").to_pylist(), patients))
    cells["age"].add(zip(map(deidentify.age_band, age.to_pylist()), patients))
    of_code = patient.take(pc.list_parent_indices(codes))
    cells["codes"].add(zip(pc.list_flatten(codes).to_pylist(), of_code.to_pylist()))
