"""Joins built data sets into one: splits, labels, codes and zero-filled leads stay, each signal is copied once.

`parts` says which sets fit together, `place` (pure) which patient goes where, `shard` writes one joined shard, of
`rows` without `copies`, `finish` the tables and the manifest. What comes out is a data set like a built one;
`private/join.json` names its parts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sharding import build_state, workers
from sharding import plan as planning
from sharding.finish import Outcome, tables
from sharding.join import finish, parts, place, state
from sharding.join.shard import join_shard
from sharding.plan import Plan
from umbra.config import check_fields, setting
from umbra.errors import UserError
from umbra.lock import lock
from umbra.schema import MANIFEST, PRIVATE, Geometry


@dataclass
class JoinConfig:
    """A join of data sets."""

    parts: list[str] = field(default_factory=list)
    """The folders of the data sets, in the order that their shards will have."""
    output: str = ""
    """The folder of the joined data set."""
    distinct_patients: bool = False
    """Whether it is known that no patient stands in two parts whose pseudonym keys differ."""
    workers: int = setting(1, ">= 1 and <= 1024")
    """Processes on this machine."""


def join(config: JoinConfig) -> Outcome:
    """Joins the parts at `config.output`, or does what is left of it. Raises `UserError` for what the user can fix."""
    started, output = time.monotonic(), Path(config.output)
    found = _checked(config)
    workers.refuse_foreign(output)
    with workers.guarded(output), lock(output / PRIVATE / "plan.lock"):
        plan = _ensure_plan(output, found)
        done = build_state.finished(output, plan)
        if (output / MANIFEST).is_file():
            if len(done) == len(plan.shards) and all(path.is_file() for path in tables(output)):
                return Outcome("already built")
            (output / MANIFEST).unlink()  # something was lost since: it is written again
        found = state.resumed(output, found)
        todo = [s for s in plan.shards if s.name not in done]
        with workers.worker_pool(config.workers) as pool:
            workers.write_shards(output, plan, todo, partial(join_shard, output), pool, "sample")
        outcome = finish.finish(output, plan, found)
    outcome.seconds = time.monotonic() - started
    return outcome


def dry_run(config: JoinConfig) -> str:
    """What `join` would do, without writing anything."""
    found = _checked(config)
    plan = state.draw_up(found, place.placed(found))
    first = found[0].manifest
    geometry = Geometry(len(first.leads), first.samples, plan.meta_bytes)
    size = sum(geometry.shard_bytes(s.windows) for s in plan.shards)
    head = f"would write {len(plan.shards)} shards, {plan.windows:,} windows, {size / 1e6:,.1f} MB at most"
    return "\n  ".join([head, *described(found), *plan.notes])


def described(found: Sequence[parts.Part]) -> list[str]:
    """A line on each part: windows and splits."""
    lines = []
    for part in found:
        of_split = {split: sum(s.samples for s in part.manifest.of_split(split)) for split in planning.SPLITS}
        listed = ", ".join(f"{n:,} {split}" for split, n in of_split.items() if n)
        lines.append(f"{part.label}: {sum(of_split.values()):,} windows ({listed})")
    return lines


def _checked(config: JoinConfig) -> list[parts.Part]:
    check_fields(config)
    if len(config.parts) < 2 or not config.output:
        raise UserError("usage: python -m sharding join PART PART ... output=FOLDER, two parts at least")
    found = parts.read(config.parts)
    _refuse_nested(config.output, found)
    parts.refuse_unlike(found, config.distinct_patients)
    return found


def _refuse_nested(word: str, found: Sequence[parts.Part]) -> None:
    """Raises `UserError` for an output that is a part, lies in one or holds one."""
    output = Path(word).resolve()
    for part in found:
        path = part.path.resolve()
        if output == path:
            raise UserError(f"output={word} is one of the parts: choose another output")
        if output.is_relative_to(path):
            raise UserError(f"output={word} lies inside the part {part.path}: choose an output outside it")
        if path.is_relative_to(output):
            raise UserError(f"output={word} holds the part {part.path}: choose an output that holds no part")


def _ensure_plan(output: Path, found: Sequence[parts.Part]) -> Plan:
    """The plan of the output: read and compared if there is one, else made."""
    if not (output / PRIVATE / planning.PLAN_JSON).is_file():
        placed = place.placed(found)
        state.write(output, found, placed)
        planning.write_json(output, state.draw_up(found, placed))
        return planning.read_plan(output)
    plan = planning.read_plan(output)
    if "join" not in plan.content:
        raise UserError(f"output={output} holds a data set that was built, not joined: choose another output")
    if plan.content["join"] != [part.manifest.fingerprint for part in found]:
        raise UserError(
            f"{output} was joined from other parts, or in another order: choose another output or delete it"
        )
    return plan
