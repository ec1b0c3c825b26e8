"""Which window of which record goes into which shard: from headers alone, a pure function of input and config.

`private/plan.parquet` has one row a record, in the order of the shards (one row group a shard), then the rejected
ones. `private/inputs.parquet` lists every input file with size and time, so that a change is noticed and named.
`private/plan.json`, written last, holds the rest: without it there is no plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import deidentify, leads, signal, sources
from sharding.config import UserError
from sharding.metadata import Table, TableConfig, label, read_table
from sharding.schema import PRIVATE, SPLITS
from sharding.writer import atomic, write_text

META_BYTES = 512
CHUNK = 512
PLAN_JSON, PLAN_ROWS, PLAN_INPUTS = "plan.json", "plan.parquet", "inputs.parquet"
NOT_CONTENT = ("input", "output", "workers", "task", "tasks", "key_file")

REASONS = {
    "missing_file": "the header or a signal file is not there",
    "unreadable": "a file cannot be opened, or is no regular file",
    "path": "a file name that is absolute or leaves the input folder",
    "header": "the header has no certain meaning",
    "multi_segment": "a record of several segments",
    "format": "a signal format that is not supported",
    "frames": "several samples a frame",
    "skew": "signals with skew",
    "truncated": "the signal file is shorter than the header says",
    "empty": "no samples",
    "too_large": "more samples than one record may have",
    "rate": "a sampling rate out of bounds",
    "gain": "a gain that cannot be",
    "duplicate_lead": "a lead comes twice",
    "missing_lead": "a lead is missing and cannot be derived",
    "short": "shorter than one window",
    "duplicate_record": "the table lists the record more than once",
    "no_split": "the config puts it into no split",
    "patient_overflow": "a patient has more windows than fit into one shard",
    "nan": "missing samples",
    "saturated": "samples at the converter's limits",
    "flat_lead": "a lead that never changes",
    "units": "units that are no voltage, or amplitudes of another unit",
    "amplitude": "a value beyond 20 mV",
    "clipped": "a value that does not fit int16 at this resolution",
    "metadata": "metadata larger than its place in the shard",
}


@dataclass
class SourceConfig:
    """A data set's `name` (part of every pseudonym), `format`, table, and whether it is `public`.

    `vocabulary` allows codes beside SNOMED CT concepts and PTB-XL's SCP statements.
    """

    name: str = "wfdb"
    format: str = "wfdb"
    public: bool = False
    vocabulary: list[str] = field(default_factory=list)
    table: TableConfig = field(default_factory=TableConfig)


@dataclass
class SplitConfig:
    """Fractions of the patients; or, with `column`, the values of that table column in each split."""

    column: str = ""
    train: Any = 0.8
    val: Any = 0.1
    test: Any = 0.1


@dataclass
class BuildConfig:
    """Everything that a build needs: `rate` in Hz, `seconds` per window, `resolution_uv` microvolt per int16 unit.

    `task` of `tasks` builds every `tasks`-th shard, for machines that share only the file system.
    """

    input: str = ""
    output: str = ""
    rate: float = 100.0
    seconds: float = 10.0
    leads: list[str] = field(default_factory=lambda: list(leads.CANONICAL))
    workers: int = 1
    samples_per_shard: int = 1000
    split: SplitConfig = field(default_factory=SplitConfig)
    labels: list[str] = field(default_factory=list)
    seed: int = 0
    resolution_uv: float = 1.0
    source: SourceConfig = field(default_factory=SourceConfig)
    key_file: str = ""
    task: int = 0
    tasks: int = 1

    @property
    def samples(self) -> int:
        return round(self.rate * self.seconds)


def validated(config: BuildConfig) -> BuildConfig:
    """The config with canonical lead names. Raises `UserError` for values that cannot work."""
    if not config.input or not config.output:
        raise UserError("input=FOLDER and output=FOLDER are needed")
    if Path(config.input).is_dir() and not any(os.scandir(config.input)):
        raise UserError(f"input folder {config.input} is empty")
    if not Path(config.input).is_dir():
        raise UserError(
            f"input folder {config.input} does not exist"
            if not Path(config.input).exists()
            else f"input={config.input} is no folder"
        )
    low, high = signal.RATES
    if not low <= config.rate <= high:
        raise UserError(f"rate={config.rate:g} must lie between {low:g} and {high:g} Hz")
    if config.seconds <= 0 or abs(config.rate * config.seconds - config.samples) > 1e-6 or config.samples > 1 << 24:
        raise UserError(f"seconds={config.seconds:g} times rate={config.rate:g} must be a whole number of samples")
    for key, lowest, highest in (("workers", 1, 1024), ("samples_per_shard", 1, 999_999), ("tasks", 1, 100_000)):
        if not lowest <= getattr(config, key) <= highest:
            raise UserError(f"{key}={getattr(config, key)} must lie between {lowest} and {highest}")
    if not 0 <= config.task < config.tasks:
        raise UserError(f"task={config.task} must lie between 0 and tasks-1={config.tasks - 1}")
    if not 1e-3 <= config.resolution_uv <= 1e3:
        raise UserError(f"resolution_uv={config.resolution_uv:g} must lie between 0.001 and 1000 microvolt")
    names = [name for lead in config.leads if (name := leads.canonical(lead))]
    if not names or len(names) < len(config.leads) or len(set(names)) < len(names):
        raise UserError(f"leads={config.leads} must be different ones of {', '.join(leads.CANONICAL)}")
    sources.module(config.source.format)
    return dataclasses.replace(config, leads=names)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to build: `ordinal` over all splits, its records (rows of its row group) and windows."""

    name: str
    split: str
    ordinal: int
    records: int
    windows: int


@dataclass(frozen=True)
class Plan:
    """What `plan.json` holds. `config` and `inputs` are hashes; `content` is the config without paths and workers."""

    content: dict[str, Any]
    config: str
    inputs: str
    input_files: int
    meta_bytes: int
    key_id: str
    patient_ids: bool
    shards: list[ShardPlan]
    records: int
    windows: int
    codes_left_out: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


def content(config: BuildConfig, key_id: str) -> dict[str, Any]:
    """The part of a config that decides which bytes come out."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_CONTENT}
    return {**json.loads(json.dumps(values)), "key_id": key_id}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_plan(output: Path) -> Plan:
    """Raises `UserError` if there is none, or if it is damaged."""
    path = output / PRIVATE / PLAN_JSON
    try:
        values = json.loads(path.read_text())
        values["shards"] = [ShardPlan(**shard) for shard in values["shards"]]
        return Plan(**values)
    except FileNotFoundError as error:
        raise UserError(f"{output} holds no plan: it is no output folder of a build") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version: delete {output} and build anew") from error


def rows_of_shard(output: Path, ordinal: int) -> pa.Table:
    """The planned records of one shard, in order."""
    with pq.ParquetFile(output / PRIVATE / PLAN_ROWS) as file:
        return file.read_row_group(ordinal)


def rejected_rows(output: Path, plan: Plan) -> Iterator[pa.Table]:
    with pq.ParquetFile(output / PRIVATE / PLAN_ROWS) as file:
        for group in range(len(plan.shards), file.num_row_groups):
            yield file.read_row_group(group)


def refuse_change(output: Path, plan: Plan, config: BuildConfig, key_id: str) -> None:
    """Raises `UserError`, naming what differs, if `config` or the input are not those of the plan."""
    mend = f"choose another output or delete {output}"
    now = content(config, key_id)
    if digest(now) != plan.config:
        old, new = _flat(plan.content), _flat(now)
        key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
        raise UserError(f"{output} was planned with {key}={old.get(key)}, now {key}={new.get(key)}: {mend}")
    if change := _changed_input(output, config):
        raise UserError(f"{output} was planned from other input, {change}: {mend}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def _changed_input(output: Path, config: BuildConfig) -> str:
    root = Path(config.input)
    listed = pq.read_table(output / PRIVATE / PLAN_INPUTS)
    names, sizes, times = (listed.column(c).to_pylist() for c in ("file", "size", "mtime_ns"))
    for name, size, time in zip(names, sizes, times):
        if (now := _stamp(root, name)) != (size, time):
            return f"{name} {'is gone' if now[0] < 0 else 'is new' if size < 0 else 'has changed'}"
    if not config.source.table.file:
        known = set(names)
        found = sources.module(config.source.format).find(root, _inside(root, output))
        if new := [record for record in found if f"{record}.hea" not in known]:
            return f"{new[0]}.hea and {len(new) - 1} more are new" if len(new) > 1 else f"{new[0]}.hea is new"
    return ""


def _inside(root: Path, output: Path) -> str:
    """Where `output` lies in `root`, relative; empty if it does not."""
    relative = os.path.relpath(os.path.realpath(output), os.path.realpath(root))
    return "" if relative == "." or relative.startswith("..") else relative


def _stamp(root: Path, name: str) -> tuple[int, int]:
    try:
        status = os.stat(sources.contained(root, name))
    except (OSError, ValueError, sources.Rejected):
        return -1, 0
    return status.st_size, status.st_mtime_ns


# ---- from headers to rows ----


@dataclass(slots=True)
class Row:
    """One input record as header and table tell: raw patient id (never written), windows, or the reason for none."""

    record: str
    reason: str
    detail: str
    patient: str
    age: float
    sex: str | None
    codes: tuple[str, ...]
    codes_left_out: int
    rate: float
    windows: int
    stamps: list[tuple[str, int, int]]


def describe(config: BuildConfig, named: Sequence[tuple[str, dict[str, str]]]) -> list[Row]:
    """The rows of some records, each with its words from the table (which go before those of the header)."""
    source = sources.module(config.source.format)
    root = Path(config.input)
    vocabulary = frozenset(config.source.vocabulary)
    return [_describe(source, root, config, vocabulary, record, words) for record, words in named]


def _describe(
    source: Any, root: Path, config: BuildConfig, vocabulary: frozenset[str], record: str, words: dict[str, str]
) -> Row:
    try:
        head = source.head(root, record)
        words = {**head.words, **{k: v for k, v in words.items() if deidentify.identity(v)}}
        reason, detail = _header_reason(head, config)
        files, rate, samples = head.files, head.rate, head.samples
    except sources.Rejected as error:
        reason, detail, files, rate, samples = error.reason, error.detail, error.files or [f"{record}.hea"], 0.0, 0
    except OSError as error:
        reason, detail, files, rate, samples = "unreadable", error.strerror or "", [f"{record}.hea"], 0.0, 0
    windows = 0 if reason else signal.resampled_length(samples, rate, config.rate) // config.samples
    codes, left_out = deidentify.codes(words.get("codes", ""), vocabulary)
    return Row(
        record,
        reason,
        detail,
        deidentify.identity(words.get("patient", "")),
        deidentify.age(words.get("age", "")),
        deidentify.sex(words.get("sex", ""), config.source.table.sex_values),
        codes,
        left_out,
        rate,
        windows,
        [(name, *_stamp(root, name)) for name in files],
    )


def _header_reason(head: sources.Head, config: BuildConfig) -> tuple[str, str]:
    try:
        rows = leads.index(head.leads)
    except ValueError as error:
        return "duplicate_lead", str(error)
    if absent := leads.missing(rows, config.leads):
        return "missing_lead", " ".join(absent)
    if signal.resampled_length(head.samples, head.rate, config.rate) < config.samples:
        return "short", f"{head.samples / head.rate:.4g} s"
    return "", ""


def named_records(config: BuildConfig, table: Table | None) -> list[tuple[str, dict[str, str]]]:
    """Every record of the input with its words from the table. Raises `UserError` if there is none."""
    root = Path(config.input)
    if table is None:
        found = sources.module(config.source.format).find(root, _inside(root, Path(config.output)))
        if not found:
            raise UserError(f"input folder {root} holds no .hea file: point input= at a folder of WFDB records")
        return [(record, {}) for record in found]
    if not table.records:
        raise UserError(f"{table.path} has no rows")
    kinds = list(table.words)
    columns = zip(*table.words.values()) if kinds else ([] for _ in table.records)
    return [(record, dict(zip(kinds, values))) for record, values in zip(table.records, columns)]


# ---- from rows to shards ----

_U64 = np.uint64


def mixed(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014) of each value and the seed: the patients' order, stable for ever."""
    x = values.astype(_U64) ^ _U64(seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    with np.errstate(over="ignore"):
        x = x + _U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def splits_by_fraction(patients: int, fractions: Sequence[float]) -> NDArray[np.int8]:
    """Split (index into SPLITS, -1: none) of each patient in permuted order; none stays empty without need."""
    counts = np.diff(np.rint(np.cumsum([0.0, *fractions]) * patients).astype(int))
    for split in np.flatnonzero((np.array(fractions) > 0) & (counts == 0)):
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[split] = 1
    out = np.full(patients, -1, np.int8)
    out[: counts.sum()] = np.repeat(np.arange(len(fractions), dtype=np.int8), counts)
    return out


def pack(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Bin of each item when bins are filled in order up to `most`, items never cut (no item is larger than `most`)."""
    ends = np.cumsum(sizes)
    bins = np.empty(len(sizes), np.int64)
    start, number = 0, 0
    while start < len(sizes):
        filled = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, filled + most, side="right"))
        bins[start:stop] = number
        start, number = stop, number + 1
    return bins


def _wanted_split(config: BuildConfig, table: Table | None) -> list[int] | None:
    """Split of each table row by `split.column`; None where fractions decide."""
    options = config.split
    if not options.column:
        return None
    if table is None:
        raise UserError(
            "split.column needs a table (source.table.file); without one, splits are fractions of the patients"
        )
    column = table.column(options.column, "split.column")
    lists = {s: getattr(options, s) if isinstance(getattr(options, s), list) else [] for s in SPLITS}
    if not lists["train"]:
        raise UserError(f"split.column={options.column} needs split.train=[...], the column's values that train")
    where = {deidentify.identity(str(v)): SPLITS.index(s) for s in SPLITS for v in lists[s]}
    if sum(map(len, lists.values())) > len(where):
        raise UserError(f"split.column={options.column}: a value stands in two splits")
    return [where.get(deidentify.identity(v), -1) for v in column]


def _fractions(options: SplitConfig) -> list[float]:
    values = [getattr(options, s) for s in SPLITS]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or v < 0 for v in values) or sum(values) > 1 + 1e-9:
        raise UserError(
            f"split: train={values[0]} val={values[1]} test={values[2]} must be fractions that add up to at most 1 "
            "(or name the table's column in split.column)"
        )
    if values[0] == 0:
        raise UserError("split.train must be more than 0")
    return [float(v) for v in values]


def _assign(
    codes: NDArray[np.int64], wanted: NDArray[np.int8] | None, config: BuildConfig
) -> tuple[NDArray[np.int8], NDArray[np.uint64]]:
    """(split, place in the order of patients) of each usable record."""
    unique, inverse = np.unique(codes, return_inverse=True)
    place = mixed(unique, config.seed)
    if wanted is None:
        by_patient = np.empty(len(unique), np.int8)
        by_patient[np.argsort(place, kind="stable")] = splits_by_fraction(len(unique), _fractions(config.split))
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
    config: BuildConfig, key: deidentify.PseudonymKey, rows: list[Row], known: Survey
) -> tuple[Plan, pa.Table, pa.Table]:
    """(plan, rows in the order of the shards with the rejected ones last, input files) from the described records."""
    codes = _patient_codes(config.source.name, key, rows)
    windows = np.array([row.windows for row in rows], np.int64)
    reasons = _duplicates([row.reason for row in rows], rows)
    usable = np.flatnonzero([not reason for reason in reasons])
    split, place = np.full(len(rows), -1, np.int8), np.zeros(len(rows), np.uint64)
    chosen = None if known.splits is None else np.array(known.splits, np.int8)[usable]
    split[usable], place[usable] = _assign(codes[usable], chosen, config)
    for row in usable[split[usable] < 0]:
        reasons[row] = "no_split"
    order = np.lexsort((np.arange(len(rows)), codes, place, split))
    order = order[split[order] >= 0]
    kept = _within_patient(codes[order], windows[order], config.samples_per_shard)
    for row in order[kept == 0]:
        reasons[row] = "patient_overflow"
    order, kept = order[kept > 0], kept[kept > 0]
    planned = np.zeros(len(rows), np.int64)
    planned[order] = kept
    shards = _shards(order, codes, split, kept, config.samples_per_shard)
    order = np.concatenate([order, np.flatnonzero(planned == 0)])
    files = sorted({stamp for row in rows for stamp in row.stamps} | _table_stamp(known.table))
    inputs = pa.table({"file": [f[0] for f in files], "size": [f[1] for f in files], "mtime_ns": [f[2] for f in files]})
    now = content(config, key.key_id)
    plan = Plan(
        content=now,
        config=digest(now),
        inputs=digest(files),
        input_files=len(files),
        meta_bytes=META_BYTES,
        key_id=key.key_id,
        patient_ids=bool(len(usable)) and all(rows[i].patient for i in usable),
        shards=shards,
        records=len(rows),
        windows=int(planned.sum()),
        codes_left_out=sum(row.codes_left_out for row in rows),
    )
    return plan, _frame(rows, order, reasons, codes, planned, known.labels), inputs


def _patient_codes(source: str, key: deidentify.PseudonymKey, rows: list[Row]) -> NDArray[np.int64]:
    whom = (("patient", row.patient) if row.patient else ("record", row.record) for row in rows)
    return np.array([deidentify.pseudonym(key, source, kind, identity) for kind, identity in whom], np.int64)


def _frame(
    rows: list[Row],
    order: NDArray[np.int64],
    reasons: list[str],
    codes: NDArray[np.int64],
    planned: NDArray[np.int64],
    labels: dict[str, list[Any]],
) -> pa.Table:
    """The rows as a table; `windows` are the planned ones, `over` those of a planned record that found no place."""
    picked = [rows[i] for i in order]
    over = [max(row.windows - n, 0) if n else 0 for row, n in zip(picked, planned[order].tolist())]
    return pa.table(
        {
            "record": [row.record for row in picked],
            "reason": [reasons[i] for i in order],
            "detail": [row.detail for row in picked],
            "patient": pa.array(codes[order], pa.int64()),
            "age": pa.array([row.age for row in picked], pa.float32()),
            "sex": pa.array([row.sex for row in picked], pa.string()),
            "codes": pa.array([list(row.codes) for row in picked], pa.list_(pa.string())),
            "windows": pa.array(planned[order], pa.int32()),
            "over": pa.array(over, pa.int32()),
            **{column: _label_array(values, order) for column, values in labels.items()},
        }
    )


def _label_array(values: list[Any], order: NDArray[np.int64]) -> pa.Array:
    return pa.array(values).take(pa.array(order))


def _duplicates(reasons: list[str], rows: list[Row]) -> list[str]:
    seen: set[str] = set()
    for i, row in enumerate(rows):
        if row.record in seen:
            reasons[i] = "duplicate_record"
        seen.add(row.record)
    return reasons


def _table_stamp(table: Table | None) -> set[tuple[str, int, int]]:
    if table is None:
        return set()
    path = Path(table.path)
    return {(path.name, *_stamp(path.parent, path.name))}


def _within_patient(codes: NDArray[np.int64], windows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Windows that each record may keep so that no patient has more than `most` (records of a patient lie together)."""
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
    """The shards that the records fill in this order; a patient's records, adjacent in it, stay together."""
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


@dataclass
class Survey:
    """What is known before a header is read: the table, all records with its words, their splits (None: fractions)."""

    table: Table | None
    named: list[tuple[str, dict[str, str]]]
    splits: list[int] | None
    labels: dict[str, list[Any]]


def survey(config: BuildConfig) -> Survey:
    """Lists the records and checks what the config asks of the table, before the long part. Raises `UserError`."""
    table = read_table(Path(config.input), config.source.table, config.rate)
    if config.labels and table is None:
        raise UserError(f"labels={config.labels} need a table (source.table.file)")
    splits = _wanted_split(config, table)
    if splits is None:
        _fractions(config.split)
    labels = {name: label(table, name) for name in config.labels} if table else {}
    return Survey(table, named_records(config, table), splits, labels)


def draw_up(
    config: BuildConfig,
    key: deidentify.PseudonymKey,
    known: Survey,
    pool: Executor | None,
    tick: Callable[[int], object],
) -> tuple[Plan, pa.Table, pa.Table]:
    """Reads all headers (over `pool` if there is one) and plans. `tick(n)` is called as records are read."""
    named = known.named
    chunks = [named[i : i + CHUNK] for i in range(0, len(named), CHUNK)]
    rows: list[Row] = []
    for part in (map if pool is None else pool.map)(partial(describe, config), chunks):
        rows += part
        tick(len(part))
    return make_plan(config, key, rows, known)


def write_plan(output: Path, plan: Plan, rows: pa.Table, inputs: pa.Table) -> None:
    """`plan.json` last; each file whole or not there."""
    private = output / PRIVATE
    for name, table in ((PLAN_INPUTS, inputs), (PLAN_ROWS, rows)):
        with atomic(private / name) as path, contextlib.closing(pq.ParquetWriter(path, table.schema)) as writer:
            if name == PLAN_INPUTS:
                writer.write_table(table)
                continue
            start = 0
            for shard in plan.shards:
                writer.write_table(table.slice(start, shard.records), row_group_size=max(shard.records, 1))
                start += shard.records
            writer.write_table(table.slice(start), row_group_size=100_000)
    write_text(private / PLAN_JSON, plan.to_json())
