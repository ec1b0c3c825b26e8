"""Processes that write the planned shards of an output folder, and what may go wrong with either."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

from sharding import build_state, progress
from sharding.plan import Plan, ShardPlan
from umbra.errors import UserError
from umbra.files import claim_folder
from umbra.schema import MANIFEST, PRIVATE


def refuse_foreign(output: Path) -> None:
    """Raises `UserError` if the output is a file, or a folder that holds something else."""
    claim_folder(output, "output")
    if output.is_dir() and any(output.iterdir()) and not (output / PRIVATE).is_dir():
        what = "a data set without its private/ folder" if (output / MANIFEST).is_file() else "other files"
        raise UserError(f"output folder {output} holds {what}: choose another output")


@contextlib.contextmanager
def guarded(output: Path) -> Iterator[None]:
    """Disk trouble and the end of a worker are the user's to fix: one line each, and the same command goes on."""
    with _out_of_space(output), _broken_workers(output):
        yield


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


def write_shards(
    output: Path, plan: Plan, todo: Sequence[ShardPlan], job: Callable[..., None], pool: Executor | None, unit: str
) -> None:
    """`job(shard)` for each, over the pool if there is one (else `job(shard, tick)`); `unit`: what a plan counts.

    Raises `UserError`, once all others are done, if some failed.
    """
    failures = []
    for shard in todo:
        build_state.failure_path(output, shard.name).unlink(missing_ok=True)
    total = sum(s.records for s in plan.shards)
    with progress.bar(total, unit, f"{unit}s") as bar:
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
