"""Builds shards from recordings, with any number of workers, machines and restarts: plan -> `shard` -> `finish`."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection
from pathlib import Path

import pyarrow as pa

from sharding import build_state, changes, deidentify, headers, progress
from sharding import plan as planning
from sharding.finish import Outcome, finish, tables_are_whole
from sharding.lock import lock
from sharding.options import BuildConfig, named, validated
from sharding.plan import Plan, ShardPlan
from sharding.shard import build_shard
from umbra.errors import UserError
from umbra.files import claim_folder
from umbra.schema import MANIFEST, PRIVATE, Geometry


def build(config: BuildConfig, pool: Executor | None = None) -> Outcome:
    """Builds the data set at `config.output`, or what remains to be built. Raises `UserError`.

    `pool`: existing workers; by default `config.workers` are started.
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
        with lock(output / PRIVATE / "plan.lock"):
            done = build_state.finished(output, plan)
            if (output / MANIFEST).is_file():
                if len(done) == len(plan.shards) and tables_are_whole(output):
                    return Outcome("already built")
                (output / MANIFEST).unlink()  # something has been deleted or damaged since and is built again
        todo = [s for s in plan.shards if s.name not in done and s.ordinal % config.tasks == config.task]
        _build_shards(config, plan, todo, pool)
        if len(build_state.finished(output, plan)) < len(plan.shards):
            return Outcome("waiting", seconds=time.monotonic() - started)
        with lock(output / PRIVATE / "plan.lock"):
            if (output / MANIFEST).is_file():
                return Outcome("already built")
            outcome = finish(output, config, plan)
    outcome.seconds = time.monotonic() - started
    return outcome


def dry_run(config: BuildConfig) -> str:
    """What `build` would do, as text; reads the headers and writes nothing."""
    config = validated(config)
    claim_folder(config.output, "output")
    key = deidentify.load_key(config.key_file, config.source.public, Path(config.input))
    known = headers.survey(config, planning.wanted_split)
    with worker_pool(config.workers) as pool, progress.bar(len(known.records), "record", "headers") as bar:
        plan, rows = planning.draw_up(config, key, known, pool, bar.update)
    geometry = Geometry(len(config.leads), config.samples, plan.meta_bytes)
    size = sum(geometry.shard_bytes(s.windows) for s in plan.shards)
    rejected = _reasons(rows)
    return (
        f"would write {len(plan.shards)} shards, {plan.windows:,} windows of {geometry.leads} x {geometry.samples}, "
        f"{size / 1e6:,.1f} MB at most\n"
        + "\n  ".join([progress.reasons_table(plan.windows, rejected, {}), *progress.remarks(plan)])
    )


def _refuse_foreign(output: Path) -> None:
    claim_folder(output, "output")
    if output.is_dir() and any(output.iterdir()) and not (output / PRIVATE).is_dir():
        what = "a data set without its private/ folder" if (output / MANIFEST).is_file() else "other files"
        raise UserError(f"output folder {output} holds {what}: choose another output")


@contextlib.contextmanager
def _out_of_space(output: Path) -> Iterator[None]:
    """Converts write errors at the output that the user can fix to `UserError`; the same command then resumes."""
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
            f"cannot write to {output}: {error.strerror}; fix that and run the same command again"
        ) from error


# ---- workers ----


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas, if installed, when it creates its first array
    context.set_forkserver_preload(["sharding.build", "sharding.sources.wfdb", "scipy.signal", "scipy.fft", "pandas"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """Ends this worker when its parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ensure_plan(output: Path, config: BuildConfig, key: deidentify.PseudonymKey, pool: Executor | None) -> Plan:
    """The plan of the output: read and checked if it exists, otherwise made by the first task to get the lock."""
    with lock(output / PRIVATE / "plan.lock"):
        if not (output / PRIVATE / planning.PLAN_JSON).is_file():
            return _new_plan(output, config, key, pool)
    plan = planning.read_plan(output)
    changes.refuse_other_config(output, plan, config, key.key_id)
    changes.refuse_other_table(output, plan, config)
    if config.tasks > 1 and headers.listing(config) == plan.listing:
        return plan  # each task checks the files of its own shards when it reads them
    known = headers.survey(config, planning.wanted_split)
    changes.refuse_other_records(output, known)
    if config.tasks == 1:
        with progress.bar(plan.records, "record", "compare") as bar:
            changes.refuse_other_files(output, config, pool, bar.update)
    return plan


def _new_plan(output: Path, config: BuildConfig, key: deidentify.PseudonymKey, pool: Executor | None) -> Plan:
    known = headers.survey(config, planning.wanted_split)
    with progress.bar(len(known.records), "record", "headers") as bar:
        plan, rows = planning.draw_up(config, key, known, pool, bar.update)
    if not plan.shards:
        raise UserError(f"none of {plan.records} records in {config.input} can be used: {named(_reasons(rows))}")
    planning.write_plan(output, plan, rows)
    return plan


def _reasons(rows: Iterable[pa.Table]) -> Counter[str]:
    return sum((Counter(r for r in part.column("reason").to_pylist() if r) for part in rows), Counter[str]())


def _build_shards(config: BuildConfig, plan: Plan, todo: Sequence[ShardPlan], pool: Executor | None) -> None:
    job = partial(build_shard, config, plan.meta_bytes)
    failures = []
    for shard in todo:
        build_state.failure_path(Path(config.output), shard.name).unlink(missing_ok=True)
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
            "fix that and run the same command again"
        )


@contextlib.contextmanager
def _broken_workers(output: Path) -> Iterator[None]:
    """Reports a dead worker with the failure that it recorded, if any."""
    try:
        yield
    except BrokenProcessPool as error:
        noted = [
            path.read_text(errors="replace").strip()
            for path in sorted(build_state.failure_path(output, "x").parent.glob("*.failed"))
        ]
        why = noted[0] if noted else "a worker died (out of memory, or a hanging read?): fewer workers need less memory"
        raise UserError(f"{why}; fix that and run the same command again") from error
