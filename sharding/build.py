"""From a plan to shards: each is read, checked and written by itself, by any number of workers, machines and restarts.

`plan` -> shards (tar, rows, then stats: a shard without stats is not there) -> `finish` (tables, then the manifest).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import deidentify, headers, leads, progress, signal, sources, watchdog
from sharding import plan as planning
from sharding.config import UserError
from sharding.files import atomic, remove_partial, write_text
from sharding.options import REASONS, BuildConfig, validated
from sharding.plan import Plan, ShardPlan
from sharding.schema import MANIFEST, PRIVATE, SAMPLES, Geometry, Manifest, Shard, fingerprint
from sharding.writer import ShardWriter, metadata_bytes

LOCK_WAIT = 6 * 3600.0
WINDOW_COLUMNS = ("row", "window", "reason", "detail", "key")


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
    seconds: float = 0.0


def build(config: BuildConfig, pool: Executor | None = None) -> Outcome:
    """Builds the data set at `config.output`, or what is left of it. Raises `UserError` for what the user can mend.

    `pool`: workers that are there already; by default it starts `config.workers` of its own.
    """
    config = validated(config)
    if pool is None:
        with worker_pool(config.workers) as own:
            return _build(config, own)
    return _build(config, pool)


def _build(config: BuildConfig, pool: Executor | None) -> Outcome:
    started = time.monotonic()
    output = Path(config.output)
    _refuse_foreign(output)
    key = deidentify.load_key(config.key_file, config.source.public, Path(config.input))
    with _out_of_space(output), _broken_workers(output):
        plan = _ensure_plan(output, config, key, pool)
        with _lock(output / PRIVATE / "plan.lock"):
            done = progress.finished(output, plan)
            if (output / MANIFEST).is_file():
                if len(done) == len(plan.shards) and all(path.is_file() for path in _tables(output)):
                    return Outcome("already built")
                (output / MANIFEST).unlink()  # something was lost since: it is built again
        todo = [s for s in plan.shards if s.name not in done and s.ordinal % config.tasks == config.task]
        _build_shards(config, plan, todo, pool)
        if len(progress.finished(output, plan)) < len(plan.shards):
            return Outcome("waiting", seconds=time.monotonic() - started)
        with _lock(output / PRIVATE / "plan.lock"):
            if (output / MANIFEST).is_file():
                return Outcome("already built")
            outcome = finish(output, config, plan)
    outcome.seconds = time.monotonic() - started
    return outcome


def _tables(output: Path) -> tuple[Path, Path]:
    return output / SAMPLES, output / PRIVATE / "records.parquet"


def dry_run(config: BuildConfig) -> str:
    """What `build` would do, from the headers, without writing anything."""
    config = validated(config)
    key = deidentify.load_key(config.key_file, config.source.public, Path(config.input))
    known = headers.survey(config, planning.wanted_split)
    with worker_pool(config.workers) as pool, progress.bar(len(known.records), "record", "headers") as bar:
        plan, rows = planning.draw_up(config, key, known, pool, bar.update)
    geometry = Geometry(len(config.leads), config.samples, plan.meta_bytes)
    size = sum(geometry.shard_bytes(s.windows) for s in plan.shards)
    rejected = _reasons(rows)
    return (
        f"would write {len(plan.shards)} shards, {plan.windows:,} windows of {geometry.leads} x {geometry.samples}, "
        f"{size / 1e6:,.1f} MB at most\n" + progress.reasons_table(plan.windows, rejected, {})
    )


def _refuse_foreign(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file, not a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / PRIVATE).is_dir():
        what = "a data set without its private/ folder" if (output / MANIFEST).is_file() else "other files"
        raise UserError(f"output folder {output} holds {what}: choose another output")


@contextlib.contextmanager
def _out_of_space(output: Path) -> Iterator[None]:
    """Disk trouble at the output is the user's to mend: one line, and the same command goes on afterwards."""
    try:
        yield
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
            errno.EPERM,
        ):
            raise
        raise UserError(
            f"cannot write to {output}: {error.strerror}; mend that and run the same command again"
        ) from error


# ---- workers ----


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sharding.build", "scipy.signal"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """A worker whose parent was killed ends as well."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ensure_plan(output: Path, config: BuildConfig, key: deidentify.PseudonymKey, pool: Executor | None) -> Plan:
    """The plan of the output: read and compared if there is one, else made by the first task that comes."""
    with _lock(output / PRIVATE / "plan.lock"):
        if (output / PRIVATE / planning.PLAN_JSON).is_file():
            plan = planning.read_plan(output)
            planning.refuse_other_config(output, plan, config, key.key_id)
            planning.refuse_other_table(output, plan, config)
            if config.tasks == 1:  # one task of many sees to the records of its own shards, as it reads them
                known = headers.survey(config, planning.wanted_split)
                with progress.bar(plan.records, "record", "compare") as bar:
                    planning.refuse_other_input(output, plan, config, known, pool, bar.update)
            return plan
        known = headers.survey(config, planning.wanted_split)
        with progress.bar(len(known.records), "record", "headers") as bar:
            plan, rows = planning.draw_up(config, key, known, pool, bar.update)
        if not plan.shards:
            raise UserError(f"none of {plan.records} records in {config.input} can be used: {_named(_reasons(rows))}")
        planning.write_plan(output, plan, rows)
        return plan


def _reasons(rows: Iterable[pa.Table]) -> Counter[str]:
    return sum((Counter(r for r in part.column("reason").to_pylist() if r) for part in rows), Counter[str]())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process. Without file locks all plan: they write equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        limit = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > limit:
                    raise UserError(f"another process has planned for {LOCK_WAIT / 3600:.0f} h: see {path}") from error
                time.sleep(0.2)
            except OSError:
                break
        yield


def _named(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason} ({REASONS.get(reason, '')})" for reason, n in reasons.most_common())


def _build_shards(config: BuildConfig, plan: Plan, todo: Sequence[ShardPlan], pool: Executor | None) -> None:
    job = partial(build_shard, config, plan.meta_bytes)
    failures = []
    for shard in todo:
        progress.failure_path(Path(config.output), shard.name).unlink(missing_ok=True)
    total = sum(s.records for s in plan.shards)
    with progress.bar(total, "record", "records") as bar:
        bar.update(total - sum(s.records for s in todo))
        if pool is None:
            for shard in todo:
                try:
                    job(shard, bar.update)
                except UserError as error:
                    failures.append(str(error))
        else:
            futures = {pool.submit(job, shard): shard for shard in todo}
            for future in as_completed(futures):
                try:
                    future.result()
                    bar.update(futures[future].records)
                except UserError as error:
                    failures.append(str(error))
    if failures:
        raise UserError(
            f"{len(failures)} shard{'s' * (len(failures) > 1)} failed: {failures[0]}; "
            "mend that and run the same command again"
        )


@contextlib.contextmanager
def _broken_workers(output: Path) -> Iterator[None]:
    """The end of a worker is told with what it noted before."""
    try:
        yield
    except BrokenProcessPool as error:
        noted = [
            path.read_text().strip() for path in sorted(progress.failure_path(output, "x").parent.glob("*.failed"))
        ]
        why = noted[0] if noted else "a worker ended (out of memory, or a read that hangs?): fewer workers need less"
        raise UserError(f"{why}; mend that and run the same command again") from error


# ---- one shard ----


@dataclass
class _Tally:
    """What a shard gathers as it is written: sums of the int16 units (exact), rows, reasons, remarks."""

    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    counts: NDArray[np.int64]
    rows: list[tuple[int, int | None, str, str, str | None]] = field(default_factory=list)
    flags: Counter[str] = field(default_factory=Counter)

    def reject(self, row: int, window: int | None, reason: str, detail: str) -> None:
        self.rows.append((row, window, reason, detail, None))

    def keep(self, row: int, window: int, key: str, units: NDArray[np.int16], samples: NDArray[np.int64]) -> None:
        """`samples` [leads]: how many of each lead are real (the others are zeros)."""
        self.rows.append((row, window, "", "", key))
        self.counts += samples
        self.sums += units.sum(axis=1, dtype=np.int64)
        self.squares += np.square(units, dtype=np.int32).sum(axis=1, dtype=np.int64)


def build_shard(config: BuildConfig, meta_bytes: int, shard: ShardPlan, tick: Any = None) -> None:
    """Reads, checks and writes one planned shard: the tar, its rows, its stats last. `tick(1)` after each record.

    Raises `UserError` if an input file that was there at planning cannot be read now.
    """
    output = Path(config.output)
    started = time.time()
    try:
        tally, shard_hash, count, geometry = _write_shard(config, meta_bytes, shard, tick)
    except UserError as error:
        with contextlib.suppress(OSError):
            write_text(progress.failure_path(output, shard.name), f"{error}\n")
        raise
    columns = {name: [row[i] for row in tally.rows] for i, name in enumerate(WINDOW_COLUMNS)}
    types = (pa.int32(), pa.int32(), pa.string(), pa.string(), pa.string())
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in zip(WINDOW_COLUMNS, types)})
    with atomic(progress.rows_path(output, shard.name)) as path:
        pq.write_table(table, path)
    stats = {
        "name": shard.name,
        "samples": count,
        "bytes": geometry.shard_bytes(count) if count else 0,
        "sha256": shard_hash,
        "sums": tally.sums.tolist(),
        "squares": tally.squares.tolist(),
        "counts": tally.counts.tolist(),
        "rejected": dict(sorted(Counter(row[2] for row in tally.rows if row[2]).items())),
        "flags": dict(sorted(tally.flags.items())),
        "started": started,
        "seconds": time.time() - started,
    }
    write_text(progress.stats_path(output, shard.name), json.dumps(stats) + "\n")
    progress.failure_path(output, shard.name).unlink(missing_ok=True)


def _write_shard(
    config: BuildConfig, meta_bytes: int, shard: ShardPlan, tick: Any
) -> tuple[_Tally, str, int, Geometry]:
    output = Path(config.output)
    source = sources.module(config.source.format)
    geometry = Geometry(len(config.leads), config.samples, meta_bytes)
    tally = _Tally(*(np.zeros(geometry.leads, np.int64) for _ in range(3)))
    rows = planning.rows_of_shard(output, shard.ordinal).to_pylist()
    with atomic(output / shard.name) as path:
        with open(path, "wb", buffering=1 << 20) as file:
            writer = ShardWriter(file, geometry, shard.ordinal)
            for number, row in enumerate(rows):
                try:
                    with watchdog.limit(config.timeout, partial(_hangs, config, shard, row["record"])):
                        recording = _read(source, config, row)
                except sources.Rejected as error:
                    tally.reject(number, None, error.reason, error.detail)
                else:
                    _add_record(config, writer, tally, number, row, recording)
                if tick is not None:
                    tick(1)
            shard_hash = writer.close()
    if not writer.count:
        (output / shard.name).unlink()
    return tally, shard_hash, writer.count, geometry


def _hangs(config: BuildConfig, shard: ShardPlan, record: str) -> str:
    """Notes that a record cannot be read in time; returns the line that says so."""
    line = f"{record} {watchdog.HANGS}"
    write_text(progress.failure_path(Path(config.output), shard.name), f"{line}\n")
    return line


def _read(source: ModuleType, config: BuildConfig, row: dict[str, Any]) -> sources.Recording:
    """A record's signals. Raises `UserError` for an input that is not as it was at planning."""
    root, record = Path(config.input), row["record"]
    before = (row["bytes"], row["stamp"])
    if (now := headers.stamp(root, record, row["files"])) != before:
        what = "has vanished from the input" if now[0] < 0 <= before[0] else "has changed"
        raise UserError(f"{record} {what} since the plan was made")
    try:
        return source.read(root, record, row["leads"].split(), config.source)
    except sources.Rejected as error:
        if error.reason != "missing_file":
            raise
        raise UserError(f"{record} has vanished from the input since the plan was made") from error
    except OSError as error:
        raise UserError(f"{record} cannot be read now: {error.strerror}") from error


def _add_record(
    config: BuildConfig,
    writer: ShardWriter,
    tally: _Tally,
    number: int,
    row: dict[str, Any],
    recording: sources.Recording,
) -> None:
    """Cuts one recording into its planned windows, writes the good ones and notes the reason of the others."""
    x, present = _prepared(config, row, recording)
    flags, real = recording.flags, min(x.shape[1], config.samples)
    if 0 < x.shape[1] < config.samples and 0 < config.min_seconds <= x.shape[1] / config.rate:
        x = np.pad(x, ((0, 0), (0, config.samples - x.shape[1])))
        flags = (*flags, "padded")
    meta = metadata_bytes(_metadata(config, row, recording.rate, flags), writer.geometry.meta_bytes)
    for window in range(row["windows"]):
        part = x[:, window * config.samples : (window + 1) * config.samples]
        reason, detail = _raw_reason(config, recording, window)
        if part.shape[1] < config.samples:
            reason, detail = "short", f"{x.shape[1] / config.rate:.4g} s"
        if not reason:
            reason, detail = signal.check(part[present, :real])
        units = None if reason else signal.quantise(part, config.resolution_uv)
        seen = None if units is None else units[present, :real]
        if seen is not None and (flat := int((seen.min(axis=1) == seen.max(axis=1)).sum())):
            reason, detail = "flat_lead", f"{flat} leads never change by {config.resolution_uv:g} microvolt"
        if not reason and units is None:
            reason, detail = "clipped", f"{float(np.abs(part).max()):.3g} mV at {config.resolution_uv:g} microvolt"
        elif not reason and meta is None:
            reason = "metadata"
        if reason:
            tally.reject(number, window, reason, detail)
        else:
            tally.keep(number, window, writer.add(units, meta), units, present * real)  # type: ignore[arg-type]
            tally.flags.update(flags)


def _prepared(
    config: BuildConfig, row: dict[str, Any], recording: sources.Recording
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(signals `[leads, samples]` in mV at the target rate, which leads are there; the others are zeros)."""
    x = recording.mv
    if recording.missing is not None:
        x = signal.bridged(x, recording.missing)
    if config.high_pass:
        x = signal.high_pass(x, recording.rate, config.high_pass)
    x = signal.resample(x, recording.rate, config.rate)
    there = row["leads"].split()
    x = leads.arrange(x, recording.leads, there)
    present = np.array([lead in there for lead in config.leads])
    if present.all():
        return x, present
    out = np.zeros((len(config.leads), x.shape[1]), np.float32)
    out[present] = x
    return out, present


def _raw_reason(config: BuildConfig, recording: sources.Recording, window: int) -> tuple[str, str]:
    if recording.missing is None and recording.saturated is None:
        return "", ""
    first, last = signal.span(window, config.samples, recording.rate, config.rate)
    if recording.missing is not None and (gaps := int(recording.missing[first:last].sum())):
        return "nan", f"{gaps} samples missing"
    if recording.saturated is not None and (limits := int(recording.saturated[first:last].sum())):
        return "saturated", f"{limits} samples at the converter's limits"
    return "", ""


def _metadata(config: BuildConfig, row: dict[str, Any], rate: float, flags: Sequence[str]) -> dict[str, Any]:
    age, there = row["age"], row["leads"].split()
    meta = {
        "source": config.source.name,
        "patient": row["patient"],
        "age": None if age != age else age,
        "sex": row["sex"],
        "codes": row["codes"].split(";") if row["codes"] else [],
        "rate": rate,
        "flags": list(flags),
    }
    return meta if len(there) == len(config.leads) else {**meta, "leads": there}


# ---- finish ----


def finish(output: Path, config: BuildConfig, plan: Plan) -> Outcome:
    """Writes `samples.parquet`, `private/records.parquet` and, last, the manifest, from the stats of all shards."""
    done = progress.finished(output, plan)
    stats = [done[s.name] for s in plan.shards]
    kept = [(s, t) for s, t in zip(plan.shards, stats) if t["samples"]]
    if not any(s.split == "train" for s, _ in kept):
        reasons = sum((Counter(t["rejected"]) for t in stats), Counter[str]())
        raise UserError(f"no window of the train split passed the checks: {_named(reasons) or 'the split is empty'}")
    shards = [Shard(s.name, s.split, t["samples"], t["bytes"], t["sha256"]) for s, t in kept]
    cells, rejected = _write_tables(output, config, plan, {s.name: i for i, s in enumerate(shards)})
    mean, deviation = _moments([t for s, t in kept if s.split == "train"], config)
    geometry = Geometry(len(config.leads), config.samples, plan.meta_bytes)
    manifest = Manifest(
        fingerprint=fingerprint(shards, geometry, config.rate, config.leads, config.resolution_uv),
        rate=config.rate,
        leads=config.leads,
        samples=config.samples,
        resolution_uv=config.resolution_uv,
        meta_bytes=plan.meta_bytes,
        shards=shards,
        lead_mean_mv=mean,
        lead_std_mv=deviation,
        patient_ids=plan.patient_ids,
        key_id=plan.key_id,
        counts={kind: deidentify.merged_counts(pairs) for kind, pairs in cells.items()},
        config=_public_config(plan.content),
        versions=_versions(),
    )
    remove_partial(output)
    for folder in (output / PRIVATE, output / PRIVATE / progress.STATS):
        remove_partial(folder)
    write_text(output / MANIFEST, manifest.to_json())
    flags = sum((Counter(t["flags"]) for t in stats), Counter[str]())
    patients = len({patient for _, patient in cells["source"]})
    return Outcome("built", sum(s.samples for s in shards), patients, len(shards), rejected, flags, plan.codes_left_out)


def _public_config(content: dict[str, Any]) -> dict[str, Any]:
    source = {k: v for k, v in content["source"].items() if k in ("name", "format", "public")}
    split = content["split"]
    if split["column"]:  # its values may be anything, patients' ids too
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


def _moments(stats: list[dict[str, Any]], config: BuildConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each lead in mV, from exact integer sums: the same whatever the order."""
    sums, squares, counts = ([sum(v) for v in zip(*(t[k] for t in stats))] for k in ("sums", "squares", "counts"))
    counts = [max(n, 1) for n in counts]
    unit = config.resolution_uv / 1000.0
    variances = [(q * n - s * s) / (n * n) for s, q, n in zip(sums, squares, counts)]
    return [s / n * unit for s, n in zip(sums, counts)], [v**0.5 * unit for v in variances]


Cells = dict[str, list[tuple[str, int]]]


def _write_tables(output: Path, config: BuildConfig, plan: Plan, number: dict[str, int]) -> tuple[Cells, Counter[str]]:
    """Writes both tables, shard by shard -> ((cell, patient) pairs of the kept windows, counts of the reasons)."""
    cells: Cells = {"source": [], "sex": [], "age": [], "codes": []}
    rejected: Counter[str] = Counter()
    public, private = _tables(output)
    with atomic(public) as samples_path, atomic(private) as records_path, contextlib.ExitStack() as stack:
        samples = _Tables(samples_path, stack)
        records = _Tables(records_path, stack)
        for shard in plan.shards:
            rows = planning.rows_of_shard(output, shard.ordinal)
            windows = pq.read_table(progress.rows_path(output, shard.name))
            records.write(_records_of_shard(rows, windows, shard))
            if shard.name in number:
                table = _samples_of_shard(rows, windows, config, number[shard.name])
                samples.write(table)
                _count_cells(cells, table)
            rejected.update(r for r in windows.column("reason").to_pylist() if r)
            over = sum(rows.column("over").to_pylist())
            rejected.update({"patient_overflow": over} if over else {})
        for rows in planning.rejected_rows(output, plan):
            reasons = rows.column("reason").to_pylist()
            rejected.update(reasons)
            records.write(
                _records(
                    rows.column("record").to_pylist(),
                    [None] * len(rows),
                    reasons,
                    rows.column("detail").to_pylist(),
                    [None] * len(rows),
                    None,
                )
            )
    return cells, rejected


class _Tables:
    """A parquet file that grows by tables of one schema."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path, self._stack = path, stack
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._path, table.schema))
        self._writer.write_table(table)


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
            "source": pa.array([config.source.name] * count, pa.string()),
            "age": of_row.column("age"),
            "sex": of_row.column("sex"),
            "codes": _lists(of_row.column("codes"), ";"),
            "leads": _lists(of_row.column("leads"), " "),
            **{name: of_row.column(planning.LABEL + name) for name in config.labels},
        }
    )


def _lists(column: pa.ChunkedArray, separator: str) -> pa.Array:
    """Words joined in text as lists (none for empty text)."""
    lists = pc.split_pattern(column.cast(pa.string()), separator).combine_chunks()
    return pa.array([[w for w in words if w] for words in lists.to_pylist()], pa.list_(pa.string()))


def _records_of_shard(rows: pa.Table, windows: pa.Table, shard: ShardPlan) -> pa.Table:
    names, over = rows.column("record").to_pylist(), rows.column("over").to_pylist()
    of, window, reason, detail, key = (windows.column(c).to_pylist() for c in WINDOW_COLUMNS)
    full = [i for i, n in enumerate(over) if n]
    return _records(
        [names[i] for i in of] + [names[i] for i in full],
        window + [None] * len(full),
        reason + ["patient_overflow"] * len(full),
        detail + [f"{over[i]} windows" for i in full],
        key + [None] * len(full),
        shard,
    )


def _records(
    record: list[str],
    window: list[int | None],
    reason: list[str],
    detail: list[str],
    key: list[str | None],
    shard: ShardPlan | None,
) -> pa.Table:
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
        }
    )


def _count_cells(cells: Cells, table: pa.Table) -> None:
    patient, source, age, sex, codes = (
        table.column(c).to_pylist() for c in ("patient", "source", "age", "sex", "codes")
    )
    cells["source"] += zip(source, patient)
    cells["sex"] += zip((s or "unknown" for s in sex), patient)
    cells["age"] += zip(map(deidentify.age_band, age), patient)
    cells["codes"] += ((code, p) for p, of_sample in zip(patient, codes) for code in of_sample)
