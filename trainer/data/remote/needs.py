"""Which remote shards are read at which steps, and how much space they need: pure functions of the order of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.data.mixture import Mixture
from trainer.data.order import Order, Span


@dataclass(frozen=True)
class Need:
    """Shard number `shard` is read at some of the steps `first` to `last`."""

    shard: int
    first: int
    last: int


def lanes_of(ranks: Iterable[int], world: int, lanes: int) -> list[int]:
    """The lanes of these ranks of `world`, ascending."""
    return sorted(lane for r in ranks for lane in range(r * lanes // world, (r + 1) * lanes // world))


def needs(order: Order, lanes: Sequence[int], start: int, stop: int) -> Iterator[Need]:
    """What these lanes need for the steps `start` to `stop - 1`, ordered by first step within an epoch.

    A shard occurs once per epoch, or twice if a lane boundary splits its block and none of these lanes needs it in
    between.
    """
    while start < stop:
        epoch = order.epoch(start)
        end = min(stop, epoch.stop)
        for need in _epoch_needs(order, lanes, epoch):
            if need.last >= start and need.first < end:
                yield Need(need.shard, max(need.first, start), min(need.last, end - 1))
        start = epoch.stop


def smallest(needed: Iterable[Need], sizes: Sequence[int]) -> int:
    """The maximum number of bytes needed at any one step, which is the minimum cache size that works."""
    rows = [(need.first, need.last, sizes[need.shard]) for need in needed]
    first, last, size = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    steps, change = np.concatenate([first, last + 1]), np.concatenate([size, -size])
    return int(np.cumsum(change[np.lexsort((change, steps))]).max(initial=0))


def smallest_of_run(order: Order, lanes: Sequence[int], start: int, stop: int, sizes: Sequence[int]) -> int:
    """`smallest` over all epochs, one at a time."""
    most = 0
    while start < stop:
        end = min(stop, order.epoch(start).stop)
        most, start = max(most, smallest(needs(order, lanes, start, end), sizes)), end
    return most


def _epoch_needs(order: Order, lanes: Sequence[int], epoch: Span) -> list[Need]:
    borders, shards = order.blocks(epoch)
    per_lane = order.batch // order.lanes
    stretch, base = epoch.length * per_lane, epoch.first
    spans: dict[int, list[tuple[int, int]]] = {}
    for begin in (lane * stretch for lane in lanes):
        low, high = np.searchsorted(borders, [begin, begin + stretch], "right") - 1
        places = np.clip(borders[low : high + 2] - begin, 0, stretch).tolist()
        for block, (a, b) in enumerate(pairwise(places), int(low)):
            if b > a:
                spans.setdefault(block, []).append((a // per_lane, (b - 1) // per_lane))
    result = []
    for block, several in spans.items():
        result += [Need(s, base + a, base + b) for a, b in _merged(several) for s in shards[block].tolist()]
    return sorted(result, key=lambda need: need.first)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Inclusive intervals, with overlapping and adjacent ones merged."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


def needs_of(mixture: Mixture, name: str, start: int, stop: int) -> Iterator[Need]:
    """What any machine needs of one source of a mixture, whose lanes all machines read: as `needs`, by source epoch."""
    for _, found in _source_epochs(mixture, name, start, stop):
        yield from found


def smallest_of_source(mixture: Mixture, name: str, start: int, stop: int, sizes: Sequence[int]) -> int:
    """`smallest` of a source; at most two of its epochs meet in a step, and a shard of both takes space once."""
    most, before = 0, list[Need]()
    for _, found in _source_epochs(mixture, name, start, stop):
        most, before = max(most, smallest(_united([*before, *found]), sizes)), found
    return most


def _united(needed: Iterable[Need]) -> list[Need]:
    """Needs of the same shard that overlap or touch, as one."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for need in needed:
        spans.setdefault(need.shard, []).append((need.first, need.last))
    return [Need(shard, first, last) for shard, several in spans.items() for first, last in _merged(several)]


def _source_epochs(mixture: Mixture, name: str, start: int, stop: int) -> Iterator[tuple[int, list[Need]]]:
    """The epochs of a source's stream that the steps `start` to `stop - 1` read, each with its needs in order."""
    number, stream = mixture.stream(name)
    source = stream.source
    begin, end = (mixture.taken(step)[number] + source.start for step in (start, stop))
    for epoch in range(begin // source.samples, -(-end // source.samples)):
        found = []
        for shards, spans in stream.blocks(source.epoch + epoch):
            taken = [(max(a, 0), b) for a, b in spans if b >= 0]
            steps = [(int(a), int(b)) for a, b in (mixture.steps_of(number, span) for span in taken)]
            for a, b in _merged(steps):
                if b >= start and a < stop:
                    found += [Need(s, max(a, start), min(b, stop - 1)) for s in shards.tolist()]
        yield epoch, sorted(found, key=lambda need: need.first)
