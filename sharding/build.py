"""Builds shards from recordings, with any number of workers, machines and restarts: plan -> `shard` -> `finish`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sharding import build_state, changes, deidentify, headers, progress, trial, workers
from sharding import plan as planning
from sharding.finish import Outcome, finish, tables_are_whole
from sharding.options import BuildConfig, fix_of, named, validated
from sharding.plan import Plan
from sharding.shard import build_shard
from umbra.errors import UserError
from umbra.lock import lock
from umbra.schema import MANIFEST, PRIVATE, Geometry


def build(config: BuildConfig, pool: Executor | None = None) -> Outcome:
    """Builds the data set at `config.output`, or what remains to be built. Raises `UserError`.

    `pool`: existing workers; by default `config.workers` are started.
    """
    config = validated(config)
    if pool is None:
        with workers.worker_pool(config.workers) as own:
            return _build(config, own)
    return _build(config, pool)


def _build(config: BuildConfig, pool: Executor | None) -> Outcome:
    started = time.monotonic()
    output = Path(config.output)
    workers.refuse_foreign(output)
    key = deidentify.load_key(config.key_file, config.source.public, Path(config.input))
    with workers.guarded(output):
        plan = _ensure_plan(output, config, key, pool)
        with lock(output / PRIVATE / "plan.lock"):
            done = build_state.finished(output, plan)
            if (output / MANIFEST).is_file():
                if len(done) == len(plan.shards) and tables_are_whole(output):
                    return Outcome("already built")
                (output / MANIFEST).unlink()  # something has been deleted or damaged since and is built again
        todo = [s for s in plan.shards if s.name not in done and s.ordinal % config.tasks == config.task]
        job = partial(build_shard, config, plan.meta_bytes)
        workers.write_shards(output, plan, todo, job, pool, "record")
        if len(build_state.finished(output, plan)) < len(plan.shards):
            return Outcome("waiting", seconds=time.monotonic() - started)
        with lock(output / PRIVATE / "plan.lock"):
            if (output / MANIFEST).is_file():
                return Outcome("already built")
            outcome = finish(output, config, plan)
    outcome.seconds = time.monotonic() - started
    return outcome


def dry_run(config: BuildConfig) -> str:
    """What `build` would do, as text; reads all headers and a sample of the records, and writes nothing."""
    config = validated(config)
    workers.refuse_foreign(Path(config.output))
    key = deidentify.load_key(config.key_file, config.source.public, Path(config.input))
    known = headers.survey(config, planning.wanted_split)
    with (
        workers.guarded(Path(config.output)),
        workers.worker_pool(config.workers) as pool,
        progress.bar(len(known.records), "record", "headers") as bar,
    ):
        plan, rows = planning.draw_up(config, key, known, pool, bar.update)
    tables = list(rows)
    if not plan.shards:
        raise _none_usable(config, plan, tables)
    geometry = Geometry(len(config.leads), config.samples, plan.meta_bytes)
    size = sum(geometry.shard_bytes(s.windows) for s in plan.shards)
    shape = f"{geometry.leads} x {geometry.samples}"
    return "\n  ".join(
        [
            f"would write {len(plan.shards)} shards, {plan.windows:,} windows of {shape}, {size / 1e6:,.1f} MB at most"
            "; by the headers:",
            progress.reasons_table(plan.windows, _reasons(tables), {}).lstrip(),
            *progress.remarks(plan),
            *trial.described(config, plan, tables[: len(plan.shards)]),
        ]
    )


def _ensure_plan(output: Path, config: BuildConfig, key: deidentify.PseudonymKey, pool: Executor | None) -> Plan:
    """The plan of the output: read and checked if it exists, otherwise made by the first task to get the lock."""
    with lock(output / PRIVATE / "plan.lock"):
        if not (output / PRIVATE / planning.PLAN_JSON).is_file():
            return _new_plan(output, config, key, pool)
    plan = planning.read_plan(output)
    if "join" in plan.content:
        raise UserError(f"output={output} holds a joined data set: choose another output")
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
        raise _none_usable(config, plan, list(rows))
    planning.write_plan(output, plan, rows)
    return plan


def _none_usable(config: BuildConfig, plan: Plan, tables: Sequence[pa.Table]) -> UserError:
    """The error for a plan without a shard: the reasons, and what to try."""
    why = _reasons(tables)
    fix = fix_of(why, _leads_there(config, tables))
    return UserError(f"none of {plan.records} records in {config.input} can be used: {named(why)}{fix}")


def _leads_there(config: BuildConfig, tables: Iterable[pa.Table]) -> list[str]:
    """The wanted leads of most of the records without all of them; none if that is not known."""
    absent = Counter[str]()
    for table in tables:
        absent.update(table.filter(pc.equal(table.column("reason"), "missing_lead")).column("detail").to_pylist())
    names = absent.most_common(1)[0][0].split() if absent else []
    return [lead for lead in config.leads if lead not in names] if set(names) <= set(config.leads) else []


def _reasons(rows: Iterable[pa.Table]) -> Counter[str]:
    return sum((Counter(r for r in part.column("reason").to_pylist() if r) for part in rows), Counter[str]())
