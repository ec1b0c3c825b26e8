"""Plans which window of which record goes into which shard, from headers alone: a pure function of input and config.

`private/plan.parquet` has one row per record, in the order of the shards (one row group per shard), then the rejected
ones. Each row has the size and modification times of the record's files, so that changes are detected.
`private/plan.json` has the rest and is written last: without it there is no plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import deidentify, headers
from sharding.headers import Survey
from sharding.metadata import Table
from sharding.options import BuildConfig, content
from umbra import parquet
from umbra.errors import UserError
from umbra.files import atomic, read_json_as, write_text
from umbra.schema import PRIVATE, SPLITS

META_BYTES = 512
MOST_UNKNOWN = 100
PLAN_JSON, PLAN_ROWS = "plan.json", "plan.parquet"
LABEL = "label:"
ROWS = (
    *("record", "reason", "detail", "patient", "age", "sex", "codes", "part", "leads", "stretches", "reader", "files"),
    *("bytes", "stamp"),
)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to build: `ordinal` over all splits, number of records (rows of its row group) and windows."""

    name: str
    split: str
    ordinal: int
    records: int
    windows: int


@dataclass(frozen=True)
class Plan:
    """Contents of `plan.json`. `content`: the config without paths and workers; `table`: stamp of the table.

    For the user: `unknown_words` by kind (codes, sex), the most frequent with their counts; `unlisted`: number of
    records in the folder that are not in its table; `notes`: what the config names and the input lacks. `listing`: hash
    of the file names.
    """

    content: dict[str, Any]
    table: list[int]
    meta_bytes: int
    key_id: str
    patient_ids: bool
    shards: list[ShardPlan]
    records: int
    windows: int
    codes_left_out: int
    sexes_unknown: int = 0
    unknown_words: dict[str, dict[str, int]] = field(default_factory=dict)
    unlisted: int = 0
    unlisted_examples: list[str] = field(default_factory=list)
    listing: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


# ---- from rows to shards ----

_U64 = np.uint64


def mixed(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014) of each value and the seed: a fixed random order of patients."""
    x = values.astype(_U64) ^ _U64(seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    with np.errstate(over="ignore"):
        x = x + _U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def splits_by_fraction(patients: int, fractions: Sequence[float]) -> NDArray[np.int8]:
    """Split (index into SPLITS, -1: none) of each patient in permuted order; no split stays empty if avoidable."""
    counts = np.diff(np.rint(np.cumsum([0.0, *fractions]) * patients).astype(int))
    for split in np.flatnonzero((np.array(fractions) > 0) & (counts == 0)):
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[split] = 1
    out = np.full(patients, -1, np.int8)
    out[: counts.sum()] = np.repeat(np.arange(len(fractions), dtype=np.int8), counts)
    return out


def pack(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Bin of each item when bins are filled in order up to `most` without splitting items (none is larger)."""
    ends = np.cumsum(sizes)
    bins = np.empty(len(sizes), np.int64)
    start, number = 0, 0
    while start < len(sizes):
        filled = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, filled + most, side="right"))
        bins[start:stop] = number
        start, number = stop, number + 1
    return bins


def wanted_split(config: BuildConfig, table: Table | None) -> pa.Array | None:
    """Split of each table row by `split.column` (-1: none); None if fractions decide. Raises `UserError`."""
    options = config.split
    if not options.column:
        options.fractions()
        return None
    if table is None:
        raise UserError(
            "split.column needs a table (source.table.file); without one, splits are fractions of the patients"
        )
    column = table.column(options.column, "split.column").dictionary_encode()
    lists = {s: getattr(options, s) if isinstance(getattr(options, s), list) else [] for s in SPLITS}
    if not lists["train"]:
        raise UserError(f"split.column={options.column} needs split.train=[...], the column's values for training")
    where = {deidentify.identity(str(v)): SPLITS.index(s) for s in SPLITS for v in lists[s]}
    if sum(map(len, lists.values())) > len(where):
        raise UserError(f"split.column={options.column}: a value is in two splits")
    of_value = [where.get(deidentify.identity(v), -1) for v in column.dictionary.to_pylist()]
    return pa.array(of_value, pa.int8()).take(column.indices)


def _assign(
    codes: NDArray[np.int64], wanted: NDArray[np.int8] | None, config: BuildConfig
) -> tuple[NDArray[np.int8], NDArray[np.uint64]]:
    """(split, sort key in the order of patients) of each usable record."""
    unique, inverse = np.unique(codes, return_inverse=True)
    place = mixed(unique, config.seed)
    if wanted is None:
        by_patient = np.empty(len(unique), np.int8)
        by_patient[np.argsort(place, kind="stable")] = splits_by_fraction(len(unique), config.split.fractions())
        return by_patient[inverse], place[inverse]
    low, high = np.full(len(unique), 127, np.int8), np.full(len(unique), -2, np.int8)
    np.minimum.at(low, inverse, wanted)
    np.maximum.at(high, inverse, wanted)
    if torn := int((low != high).sum()):
        raise UserError(
            f"split.column={config.split.column} puts {torn} patients into different splits: splits are by patient"
        )
    return wanted, place[inverse]


def make_plan(
    config: BuildConfig, key_id: str, rows: pa.Table, known: Survey
) -> tuple[Plan, NDArray[np.int64], dict[str, pa.Array]]:
    """(plan, order of the rows: by shard, then the rejected; the columns that the plan sets) from `headers`.

    `windows`: the planned ones; `over`: those of a planned record that exceed the patient's shard; `reason`: completed.
    """
    patients, windows = (rows.column(c).to_numpy() for c in ("patient", "windows"))
    reasons = _Reasons(rows.column("reason"))
    if known.table is not None:
        reasons.give(_repeated(rows), "duplicate_record")
    reasons.give(headers.segments_of_others(rows), "segment")
    usable = np.flatnonzero(reasons.none())
    split, place = np.full(len(rows), -1, np.int8), np.zeros(len(rows), np.uint64)
    chosen = None if known.splits is None else known.splits.to_numpy()[usable]
    split[usable], place[usable] = _assign(patients[usable], chosen, config)
    reasons.give(usable[split[usable] < 0], "no_split")
    order = usable[split[usable] >= 0]
    order = order[np.lexsort((order, patients[order], place[order], split[order]))]
    kept = _within_patient(patients[order], windows[order].astype(np.int64), config.samples_per_shard)
    reasons.give(order[kept == 0], "patient_overflow")
    order, kept = order[kept > 0], kept[kept > 0]
    planned = np.zeros(len(rows), np.int32)
    planned[order] = kept
    shards = _shards(order, patients, split, kept, config.samples_per_shard)
    plan = Plan(
        content=content(config, key_id),
        table=table_stamp(None if known.table is None else Path(known.table.path)),
        meta_bytes=META_BYTES,
        key_id=key_id,
        patient_ids=bool(len(usable)) and not pc.any(rows.column("own").take(pa.array(usable))).as_py(),
        shards=shards,
        records=len(rows),
        windows=int(planned.sum()),
        codes_left_out=pc.sum(rows.column("left_out")).as_py() or 0,
        sexes_unknown=rows.column("sex").take(pa.array(usable)).null_count,
    )
    decided = {
        "reason": reasons.column(),
        "windows": pa.array(planned),
        "over": pa.array(np.where(planned > 0, windows - planned, 0), pa.int32()),
    }
    return plan, np.concatenate([order, np.flatnonzero(planned == 0)]), decided


class _Reasons:
    """A mutable, dictionary-encoded column of reasons."""

    def __init__(self, column: pa.ChunkedArray):
        encoded = column.combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        self._words = encoded.dictionary.to_pylist()
        self._numbers = encoded.indices.to_numpy(zero_copy_only=False).copy()

    def none(self) -> NDArray[np.bool_]:
        return self._numbers == self._number("")

    def give(self, rows: NDArray[np.int64], reason: str) -> None:
        self._numbers[rows] = self._number(reason)

    def _number(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)

    def column(self) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(self._numbers), pa.array(self._words, pa.string()))


def _repeated(rows: pa.Table) -> NDArray[np.int64]:
    """Rows whose record already occurs in an earlier row."""
    names = rows.column("name").to_numpy()
    order = np.argsort(names, kind="stable")
    return np.sort(order[1:][names[order][1:] == names[order][:-1]])


def table_stamp(path: Path | None) -> list[int]:
    return [] if path is None else list(headers.stamp(path.parent, path.name, "*"))


def _within_patient(codes: NDArray[np.int64], windows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Windows that each record may keep so that no patient has more than `most` (a patient's records are adjacent)."""
    ends = np.cumsum(windows)
    first = np.concatenate([[True], codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, bool)
    base = np.maximum.accumulate(np.where(first, ends - windows, 0))
    before = ends - windows - base
    return np.clip(most - before, 0, windows)


def _shards(
    order: NDArray[np.int64],
    codes: NDArray[np.int64],
    split: NDArray[np.int8],
    kept: NDArray[np.int64],
    most: int,
) -> list[ShardPlan]:
    """Fills shards with the records in this order; the adjacent records of a patient stay together."""
    shards: list[ShardPlan] = []
    for number, name in enumerate(SPLITS):
        inside = split[order] == number
        rows, sizes = order[inside], kept[inside]
        if not len(rows):
            continue
        starts = np.flatnonzero(np.concatenate([[True], codes[rows][1:] != codes[rows][:-1]]))
        bins = pack(np.add.reduceat(sizes, starts), most)
        of_row = np.repeat(bins, np.diff(np.append(starts, len(rows))))
        records, windows = np.bincount(of_row), np.bincount(of_row, weights=sizes).astype(int)
        first = len(shards)
        shards += [
            ShardPlan(f"{name}-{i:06d}.tar", name, first + i, int(records[i]), int(windows[i]))
            for i in range(len(records))
        ]
    return shards


# ---- on disk ----


def draw_up(
    config: BuildConfig,
    key: deidentify.PseudonymKey,
    known: Survey,
    pool: Executor | None,
    tick: Callable[[int], object],
) -> tuple[Plan, Iterator[pa.Table]]:
    """Reads all headers (in `pool` if given) and plans -> (plan, its rows: one table per shard, then the rejected).

    `tick(n)` is called as records are read.
    """
    listing, unlisted = headers.listing(config), headers.unlisted(config, known)
    rows, unknown = headers.describe_all(config, key, known, pool, tick)
    plan, order, decided = make_plan(config, key.key_id, rows, known)
    words: dict[str, dict[str, int]] = {"codes": {}, "sex": {}}
    for (kind, word), count in unknown.most_common(MOST_UNKNOWN):
        words[kind][word] = count
    plan = dataclasses.replace(
        plan,
        unknown_words=words,
        unlisted=len(unlisted),
        unlisted_examples=unlisted[:3].to_pylist(),
        listing=listing,
        notes=[*_nameless(rows, decided), *_missing_parts(config, rows), *headers.table_notes(config, known)],
    )
    return plan, ordered(plan, order, rows, decided | {LABEL + name: values for name, values in known.labels.items()})


def _nameless(rows: pa.Table, decided: dict[str, pa.Array]) -> list[str]:
    """A line on how many usable records name no patient."""
    usable = rows.column("own").filter(pc.equal(decided["reason"].cast(pa.string()), ""))
    own = pc.sum(usable).as_py() or 0
    if not own:
        return []
    which = (
        f"{own:,} of {len(usable):,} usable records name no patient"
        if own < len(usable)
        else "no record names a patient"
    )
    return [f"{which}: each record counts as its own patient (source.patient_pattern takes an id from the path)"]


def _missing_parts(config: BuildConfig, rows: pa.Table) -> list[str]:
    """A note on the names in `source.parts` that no record has. Raises `UserError` if no record has any."""
    there = set(rows.column("part").unique().to_pylist())
    missing = sorted({*config.source.parts.values()} - there)
    if missing and there <= {config.source.name}:
        folders, source = [*config.source.parts], config.source
        public = " source.public=true" if source.public else ""
        raise UserError(
            f"source.parts: none of its folders ({', '.join(folders[:3])}{', ...' if folders[3:] else ''}) holds a "
            f"record of {config.input}: give their parent folder as input=, or build it as one set: "
            f"configs/shard/{source.format}.yaml source.name={source.name}{public}"
        )
    return [f"no record is in a folder of these source.parts: {', '.join(missing)}"] if missing else []


def ordered(
    plan: Plan, order: NDArray[np.int64], rows: pa.Table, further: dict[str, pa.Array], most: int = 100_000
) -> Iterator[pa.Table]:
    """The rows in plan order, one table per shard, then the rejected in tables of `most`; with `further` columns."""
    columns = {name: rows.column(name).combine_chunks() for name in ROWS} | further
    ends = np.cumsum([0] + [shard.records for shard in plan.shards])
    bounds = [*ends.tolist(), *range(int(ends[-1]) + most, len(order), most), len(order)]
    for start, stop in pairwise(bounds):
        if stop > start:
            part = pa.array(order[start:stop])
            yield pa.table({name: column.take(part) for name, column in columns.items()})


def write_plan(output: Path, plan: Plan, rows: Iterator[pa.Table]) -> None:
    """Writes both files atomically, `plan.json` last."""
    private = output / PRIVATE
    with atomic(private / PLAN_ROWS) as path, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for part in rows:
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, part.schema))
            writer.write_table(part, row_group_size=len(part))
    write_json(output, plan)


def write_json(output: Path, plan: Plan) -> None:
    write_text(output / PRIVATE / PLAN_JSON, plan.to_json())


def read_plan(output: Path) -> Plan:
    """Reads the plan. Raises `UserError` if it is missing or damaged."""
    path = output / PRIVATE / PLAN_JSON
    if not os.path.exists(path):
        raise UserError(f"{output} holds no plan: it is not the output folder of a build")
    return read_json_as(Plan, path, f"it may be of another version; delete {output} and build again")


@lru_cache(maxsize=1)
def _parsed(path: Path, fix: str, size: int, time: int) -> parquet.Table:
    """The open file. Its footer, which is long with many shards, is parsed once per process."""
    return parquet.Table(path, fix, memory_map=True)


def row_file(output: Path) -> parquet.Table:
    """`private/plan.parquet`. Raises `UserError` if it is missing or damaged."""
    path, fix = output / PRIVATE / PLAN_ROWS, f"delete {output} and build again"
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from error
    return _parsed(path, fix, status.st_size, status.st_mtime_ns)


def rows_of_shard(output: Path, ordinal: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The planned records of one shard, in order; some `columns` of them (None: all). Raises `UserError`."""
    file = row_file(output)
    if lacking := [name for name in columns or ROWS if name not in file.names]:
        raise UserError(f"{output} was planned by another version (no column {lacking[0]}): delete it and build again")
    return file.group(ordinal, columns)


def values(column: pa.ChunkedArray) -> list[Any]:
    """`column.to_pylist()`, but much faster for dictionaries and for numbers without nulls."""
    if pa.types.is_dictionary(column.type):
        array = pa.concat_arrays(column.unify_dictionaries().chunks)
        words = [*array.dictionary.to_pylist(), None]
        return [words[i] for i in pc.fill_null(array.indices, len(words) - 1).to_numpy().tolist()]
    if pa.types.is_primitive(column.type) and column.null_count:
        return column.to_pylist()
    return column.to_numpy().tolist()


def rejected_rows(output: Path, plan: Plan) -> Iterator[pa.Table]:
    file = row_file(output)
    for group in range(len(plan.shards), len(file.groups)):
        yield file.group(group)
