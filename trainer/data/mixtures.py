"""The mixtures of a run, from the step on at which each began: what checkpoints keep, and how a resume changes them.

A change of sources, weights or excluded shards begins a new mixture at the resumed step. A source that stays as it was
goes on within its epoch; one whose shards changed, or that comes back, begins its next epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from trainer.data.mixing import Schedule, whole_shares
from trainer.data.mixture import Mixture, Source
from umbra.errors import UserError, near_miss

ONE = "a run that began with one data set (data.path=DIR) cannot become a mixture, nor a mixture such a run"


class Taken(TypedDict):
    """What a mixture takes of a source: `samples` are those of its train split without the `excluded`, `patients` those
    of the split. As the mixture begins, its stream is in epoch `epoch`, of which it has given `start` samples.
    """

    fingerprint: str
    key_id: str
    samples: int
    patients: int
    share: int
    lanes: int
    excluded: list[str]
    epoch: int
    start: int


Mixtures = list[tuple[int, dict[str, Taken]]]  # each with the step that it begins at


@dataclass(frozen=True)
class Offered:
    """A source as it is now: the names and samples of its training shards."""

    fingerprint: str
    key_id: str
    patients: int
    shards: dict[str, int]


def mixtures(
    offered: Mapping[str, Offered],
    weights: Mapping[str, float],
    exclude: Sequence[str],
    saved: Mapping[str, Any],
    batch: int,
    lanes: int,
) -> Mixtures:
    """The mixtures of a run that goes on from the checkpoint state `saved` (empty: a new run) with these sources.

    `weights`: by source (1 where it has none, if any has one; empty: the number of its training samples); `exclude`:
    shards as SOURCE/SHARD. Raises `UserError` for a source that is another data set than before.
    """
    if saved and "mixtures" not in saved:
        raise UserError(f"{ONE}: give its data.path again, or choose another run=DIR")
    step: int = saved.get("step", 0)
    before: Mixtures = [(at, taken) for at, taken in saved.get("mixtures", []) if at < step]
    left = {name: _excluded(name, one, offered, exclude) for name, one in offered.items()}
    counts = {n: sum(k for s, k in one.shards.items() if s not in left[n]) for n, one in offered.items()}
    if empty := [name for name, count in counts.items() if not count]:
        raise UserError(f"data.exclude leaves no training shard of {empty[0]}: leave it out of data.path instead")
    wanted = [weights.get(name, 1) if weights else counts[name] for name in offered]
    shares = whole_shares(wanted)
    now: dict[str, Taken] = {}
    for (name, one), share in zip(offered.items(), shares):
        stands = _stands(name, one.fingerprint, left[name], before, step, batch)
        fitting = max(1, round(lanes * share / sum(shares)))
        epoch, start, kept = stands or (0, 0, fitting)
        own = min(kept or fitting, counts[name])
        now[name] = Taken(
            fingerprint=one.fingerprint, key_id=one.key_id, samples=counts[name], patients=one.patients, share=share,
            lanes=own, excluded=left[name], epoch=epoch, start=start,
        )  # fmt: skip
    if before and _same(before[-1][1], now):
        return before
    return [*before, (step, now)]


def current(
    kept: Mixtures, offered: Mapping[str, Offered], seed: int, batch: int, lanes: int, micro: int, block: int
) -> Mixture:
    """The last of a run's mixtures."""
    first, taken = kept[-1]
    sources = tuple(
        Source(
            name,
            tuple(offered[name].shards.values()),
            one["share"],
            one["lanes"],
            tuple(i for i, shard in enumerate(offered[name].shards) if shard in one["excluded"]),
            one["epoch"],
            one["start"],
        )
        for name, one in taken.items()
    )
    whole = sum(one["samples"] for one in kept[0][1].values())
    return Mixture(sources, seed, batch, lanes, micro, block, first, whole, kept)


def fingerprint(kept: Mixtures) -> str:
    """The fingerprints of the data sets that a run began with, with + between."""
    return "+".join(one["fingerprint"] for one in kept[0][1].values())


def ever(kept: Mixtures) -> dict[str, Taken]:
    """All sources that a run was ever trained on, each as it was last."""
    return {name: one for _, taken in kept for name, one in taken.items()}


def _same(old: Mapping[str, Taken], now: Mapping[str, Taken]) -> bool:
    """Whether two mixtures are the same; where their sources stand does not count."""
    keys = ("fingerprint", "share", "excluded")
    return list(old) == list(now) and all(old[name][key] == now[name][key] for name in old for key in keys)  # type: ignore[literal-required]


def _stands(
    name: str, fingerprint: str, excluded: Sequence[str], before: Mixtures, step: int, batch: int
) -> tuple[int, int, int] | None:
    """(epoch, samples given of it, lanes or 0) of a source's stream at a step; None if it was in no mixture yet."""
    ends = [*(at for at, _ in before[1:]), step]
    for n, ((first, taken), end) in reversed(list(enumerate(zip(before, ends)))):
        if name not in taken:
            continue
        old, place = taken[name], list(taken).index(name)
        if old["fingerprint"] != fingerprint:
            raise UserError(
                f"data.path.{name} is another data set ({fingerprint}) than before ({old['fingerprint']}): give that "
                "one again, or another name"
            )
        schedule = Schedule(tuple(one["share"] for one in taken.values()))
        given = old["start"] + schedule.counts((end - first) * batch)[place]
        epoch, start = old["epoch"] + given // old["samples"], given % old["samples"]
        if n == len(before) - 1 and list(excluded) == old["excluded"]:
            return epoch, start, old["lanes"] if start else 0
        return epoch + (start > 0), 0, 0
    return None


def _excluded(name: str, one: Offered, offered: Mapping[str, Offered], exclude: Sequence[str]) -> list[str]:
    known = [f"{source}/{shard}" for source, other in offered.items() for shard in other.shards]
    for given in exclude:
        if given not in known:
            raise UserError(f"data.exclude: {given} is not a training shard, SOURCE/SHARD{near_miss(given, known)}")
    return sorted(shard for shard in one.shards if f"{name}/{shard}" in exclude)
