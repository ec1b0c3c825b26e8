"""Excludes shards from a run, from one of its steps on (`data.exclude`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from umbra.errors import UserError, near_miss
from umbra.schema import Shard

Changes = tuple[tuple[int, tuple[int, ...]], ...]


def changes(names: Sequence[str], shards: Sequence[Shard], saved: Mapping[str, Any]) -> Changes:
    """The `changes` of the order of a run that excludes the shards `names` from now on.

    `saved`: the state of the checkpoint that the run resumes from, with its `step` and earlier exclusions; empty for a
    new run. Raises `UserError` for a name that is not in `shards`, those of the training split. A change replaces an
    earlier one at the same step, which no step was trained under.
    """
    step = int(saved.get("step", 0))
    known = {shard.name: i for i, shard in enumerate(shards)}
    old = [(at, [name for name in out if name in known]) for at, out in saved.get("excluded", []) if at < step]
    before = [(at, _numbers(out, known)) for at, out in old]
    now = _numbers(names, known)
    if now != (before[-1][1] if before else ()):
        before.append((step, now))
    return tuple(before)


def as_saved(changes: Changes, shards: Sequence[Shard]) -> list[list[Any]]:
    """`changes` as a checkpoint keeps them: `[[step, [name, ...]], ...]`."""
    return [[step, [shards[i].name for i in out]] for step, out in changes]


def _numbers(names: Sequence[str], known: Mapping[str, int]) -> tuple[int, ...]:
    for name in names:
        if name not in known:
            raise UserError(f"data.exclude: {name} is not a shard of the training split{near_miss(name, known)}")
    return tuple(sorted({known[name] for name in names}))
