"""The order of samples of several data sets mixed: as `order`, a pure function, whose only state is the step.

Each source has an endless stream of its own: epoch after epoch of all its training samples, each once. An epoch is a
*line* (`order.Line`) cut into `lanes` segments that are read side by side, so that a batch is of many shards. The
schedule (`mixing.Schedule`) says which source each position of the mixture takes its next sample from. A step takes the
next `batch` positions, its contrast batches and, within these, the processes equal runs of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trainer.data.mixing import Indices, Schedule
from trainer.data.order import Line, Order, Span
from umbra.errors import UserError


@dataclass(frozen=True)
class Source:
    """One source of a mixture: samples of each of its training shards, of which some are `excluded`; its whole `share`.

    At the mixture's first step its stream is in epoch `epoch`, of which it has given `start` samples.
    """

    name: str
    counts: tuple[int, ...]
    share: int
    lanes: int
    excluded: tuple[int, ...] = ()
    epoch: int = 0
    start: int = 0

    @property
    def in_use(self) -> tuple[int, ...]:
        return tuple(0 if shard in self.excluded else n for shard, n in enumerate(self.counts))

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return sum(self.in_use)


class Stream:
    """The stream of one source: sample n = 0, 1, ... since the mixture's first step."""

    def __init__(self, source: Source, seed: int, block: int) -> None:
        self.source, self._block = source, block
        self._seed = seed + (zlib.crc32(source.name.encode()) << 64)  # another order for each source
        self._lines: dict[int, Line] = {}
        q, rest = divmod(source.samples, source.lanes)
        lanes = np.arange(source.lanes)
        self._begins, self._lengths = lanes * q + np.minimum(lanes, rest), q + (lanes < rest)

    def samples(self, n: Indices) -> Indices:
        """The samples `n` [any number] of the stream, as indices into the source's concatenated shards."""
        result = np.empty_like(n)
        for line, chosen, places in self._placed(n):
            ascending = np.argsort(places)
            result[chosen[ascending]] = line.samples(places[ascending])
        return result

    def shards(self, n: Indices) -> Indices:
        """The nonempty shards of the blocks of these samples."""
        found = [line.shards_at(np.sort(places)) for line, _, places in self._placed(n)]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def blocks(self, epoch: int) -> Iterator[tuple[Indices, list[tuple[int, int]]]]:
        """The blocks of an epoch: the nonempty shards of each, and the (first, last) samples of the stream that each
        segment takes from it. Samples of before the mixture are negative. Nothing is cached, for other threads."""
        line, lanes = self._make(epoch, 1), self.source.lanes
        begin = (epoch - self.source.epoch) * self.source.samples - self.source.start
        for block, (low, high) in enumerate(zip(line.borders, line.borders[1:])):
            a = np.clip(low - self._begins, 0, self._lengths)
            b = np.clip(high - self._begins, 0, self._lengths)
            spans = [(begin + i * lanes + lane, begin + (j - 1) * lanes + lane)
                     for lane, (i, j) in enumerate(zip(a.tolist(), b.tolist())) if j > i]  # fmt: skip
            if spans:
                yield line.shards_of(block), spans

    def _placed(self, n: Indices) -> Iterator[tuple[Line, Indices, Indices]]:
        """(line of an epoch, which of `n` are in it, their positions in the line)."""
        epochs, offsets = np.divmod(n + self.source.start, self.source.samples)
        places = self._begins[offsets % self.source.lanes] + offsets // self.source.lanes
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            yield self._line(self.source.epoch + epoch), chosen, places[chosen]

    def _line(self, epoch: int) -> Line:
        if epoch not in self._lines:
            for old in sorted(self._lines)[:-1]:
                self._lines.pop(old, None)
            self._lines[epoch] = self._make(epoch, max(2 * self.source.lanes, 16))
        return self._lines[epoch]

    def _make(self, epoch: int, kept: int) -> Line:
        return Line(self.source.counts, self._seed, Span(epoch, 0, 0, 0, self.source.excluded), self._block, kept)


@dataclass(frozen=True)
class Mixture:
    """The steps from `first` on of a run that mixes `sources`.

    `batch`, `lanes`, `micro`, `block`: as of `Order`; `epoch_samples`: training samples of all sources at the start of
    the run, which are one epoch of the mixture. Raises `UserError` where `Order` does, and for a source that a step
    would take a sample from twice.
    """

    sources: tuple[Source, ...]
    seed: int
    batch: int
    lanes: int
    micro: int = 1
    block: int = 8
    first: int = 0
    epoch_samples: int = 0
    history: list[Any] = field(default_factory=list, compare=False, repr=False)  # `mixtures.Mixtures`
    _streams: list[Stream] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert self._one.lanes
        for source in self.sources:
            fewest, rest = divmod(self.batch * source.share, self.schedule.period)
            most = fewest + 2 * (rest > 0)  # of any steps: floor or ceil of its share before and after
            if source.samples < most:
                raise UserError(
                    f"data.weights: up to {most} ECGs of a step are of {source.name}, which has {source.samples} "
                    "training ECGs: lower its weight or batch.global, or leave it out of data.path"
                )
        self._streams.extend(Stream(source, self.seed, self.block) for source in self.sources)

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule(tuple(source.share for source in self.sources))

    @cached_property
    def in_use(self) -> tuple[int, ...]:
        """Samples of each shard, of one source after the other; 0 for those that are excluded."""
        return tuple(count for source in self.sources for count in source.in_use)

    @cached_property
    def _one(self) -> Order:
        """The order of as many samples in one shard, which checks batch and lanes."""
        return Order((sum(self.in_use),), self.seed, self.batch, self.lanes, self.micro, self.block)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of the mixture: as many samples as all its sources had at the start of the run."""
        return max(1, (self.epoch_samples or sum(self.in_use)) // self.batch)

    def key(self, step: int) -> int:
        """What the random numbers of a step's samples are a function of, besides seed and sample: the step itself."""
        return step

    def ranks(self, world: int) -> None:
        """Raises `UserError` if `world` ranks cannot share the lanes, as `Order.ranks`."""
        self._one.ranks(world)

    def step(self, step: int, rank: int = 0, world: int = 1) -> Indices:
        """Sample indices `[micro, share]` (into the concatenated shards of all sources) of one rank at a step."""
        return self.steps(step, 1, rank, world)[0]

    def steps(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """`step` for several steps at once, `[count, micro, share]`."""
        positions = self._positions(step, count, rank, world)
        result, begin = np.empty(positions.size, np.int64), 0
        for stream, chosen, n in self._by_source(positions.ravel()):
            result[chosen] = stream.samples(n) + begin
            begin += sum(stream.source.counts)
        return result.reshape(positions.shape)

    def shards(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """The nonempty shards of the blocks that a rank reads at these steps, of one source after the other."""
        found, begin = [], 0
        for stream, _, n in self._by_source(self._positions(step, count, rank, world).ravel()):
            found.append(stream.shards(n) + begin)
            begin += len(stream.source.counts)
        return np.concatenate(found)

    def stream(self, name: str) -> tuple[int, Stream]:
        """The number of a source, and its stream."""
        return next((n, stream) for n, stream in enumerate(self._streams) if stream.source.name == name)

    def steps_of(self, source: int, n: Sequence[int]) -> Indices:
        """The steps that take the samples `n` of a source's stream."""
        return self.first + self.schedule.positions(source, np.array(n, np.int64)) // self.batch

    def taken(self, step: int) -> list[int]:
        """How many samples of each source the steps `first` to `step - 1` take."""
        return self.schedule.counts((step - self.first) * self.batch)

    def _positions(self, step: int, count: int, rank: int, world: int) -> Indices:
        """`[count, micro, share]`"""
        contrast = self.batch // self.micro
        steps = (np.arange(step, step + count) - self.first) * self.batch
        mine = np.arange(rank * contrast // world, (rank + 1) * contrast // world)
        return steps[:, None, None] + (np.arange(self.micro) * contrast)[:, None] + mine

    def _by_source(self, positions: Indices) -> Iterator[tuple[Stream, Indices, Indices]]:
        """(stream, which of the positions are of it, its samples there) of each source, in order."""
        sources, places = self.schedule.at(positions)
        for number, stream in enumerate(self._streams):
            chosen = np.flatnonzero(sources == number)
            yield stream, chosen, places[chosen]
