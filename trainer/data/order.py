"""The order of samples: a pure function of shard sizes, seed, global batch, number of lanes and block size.

Each epoch permutes the shards, groups them into blocks, permutes the samples within each block and concatenates the
blocks: the *line*. The line is split into `lanes` equal segments; the global batch of a step takes the next samples of
every lane. So no sample occurs twice in an epoch, every epoch has floor(N / G) steps, the global batches are the same
at any world size, and the only state of the loader is the step.

Where shards are excluded from some step on, the current epoch ends at that step and the next begins without them.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from umbra.errors import UserError

Indices = NDArray[np.int64]
MOST_LANES = 64  # unless data.lanes says more


@dataclass(frozen=True)
class Span:
    """Epoch `number`: steps `first` to `stop - 1`, which are all its `length` steps unless a change cut it short.

    The shards `excluded` are left out of it.
    """

    number: int
    first: int
    stop: int
    length: int
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Order:
    """`counts`: samples per shard; `batch`: global batch; `micro`: contrast batches in it; `block`: shards per block.

    `changes`: (step, shards), in ascending order of steps: a new epoch begins at that step, and these shards count as
    empty until the next change.
    """

    counts: tuple[int, ...]
    seed: int
    batch: int
    lanes: int
    micro: int = 1
    block: int = 8
    changes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    _cache: dict[int, Line] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        contrast = self.batch // max(self.micro, 1)
        if self.batch % self.micro:
            raise UserError(f"batch.contrast={contrast} does not divide batch.global={self.batch}")
        if contrast % self.lanes:
            near = max((d for d in _divisors(contrast) if d <= self.lanes), default=1)
            raise UserError(f"data.lanes={self.lanes} does not divide the contrast batch {contrast}; nearest: {near}")
        for excluded in ((), *(shards for _, shards in self.changes)):
            total = sum(self.counts) - sum(self.counts[shard] for shard in excluded)
            if not total:
                raise UserError("data.exclude leaves no training shard: exclude fewer")
            if total < self.batch:
                left = " that data.exclude leaves" if excluded else ""
                raise UserError(
                    f"batch.global={self.batch} is larger than the {total} training samples{left}; use {total} or fewer"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch at the start of the run."""
        return self._stretches[0].length

    @property
    def in_use(self) -> tuple[int, ...]:
        """Samples of each shard, 0 for those that are excluded at the end."""
        out = self.changes[-1][1] if self.changes else ()
        return tuple(0 if shard in out else count for shard, count in enumerate(self.counts))

    def epoch(self, step: int) -> Span:
        """The epoch of a global step."""
        place = bisect(self._begins, step) - 1
        part, change = self._stretches[place], self._begins[place + 1 : place + 2]
        whole = (step - part.first) // part.length
        first = part.first + whole * part.length
        stop = min([first + part.length, *change])
        return Span(part.number + whole, first, stop, part.length, part.excluded)

    def ranks(self, world: int) -> None:
        """Raises `UserError` if `world` ranks cannot share the lanes, naming what they can: the nearest batches,
        numbers of lanes and of processes."""
        if self.lanes % world == 0:
            return
        contrast, fewer = self.batch // self.micro, _nearest(_divisors(self.lanes), world)
        ways = [f"{fewer} process" + "es" * (fewer > 1)]
        if lanes := [d for d in _divisors(contrast) if d % world == 0]:
            ways.insert(0, f"data.lanes={lanes[-1]}")
        said = f"data.lanes={self.lanes}"
        if self.lanes == default_lanes(contrast):
            key = "batch.global" if self.micro == 1 else "batch.contrast"
            said = f"{key}={contrast}"
            if near := self._nearest_batches(contrast, world):
                ways.insert(0, f"{key}={near}")
        raise UserError(f"{said} cannot be shared by {world} processes; use {', or '.join(ways)}")

    def _nearest_batches(self, contrast: int, world: int) -> str:
        """The nearest batches below and above whose lanes `world` ranks can share, of the samples that there are."""
        if world > MOST_LANES:
            return ""
        below, above = range(contrast - 1, 1, -1), range(contrast + 1, sum(self.counts) // self.micro + 1)
        found = [next((b for b in numbers if default_lanes(b) % world == 0), 0) for numbers in (below, above)]
        return " or ".join(str(b) for b in found if b)

    def step(self, step: int, rank: int = 0, world: int = 1) -> Indices:
        """Sample indices `[micro, share]` (into the concatenated shards) of one rank at a global step."""
        return self.steps(step, 1, rank, world)[0]

    def steps(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """`step` for several steps at once, `[n, micro, share]`: `count` of them, or fewer at the end of the epoch."""
        epoch, positions = self._positions(step, count, rank, world)
        n = positions.shape[1] * self.lanes // self.batch
        samples = epoch.samples(positions.ravel()).reshape(len(positions), n, self.micro, -1)
        return samples.transpose(1, 2, 0, 3).reshape(n, self.micro, -1)

    def shards(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """The nonempty shards of the blocks that a rank's lanes read at these steps, within the epoch as in `steps`."""
        epoch, positions = self._positions(step, count, rank, world)
        return epoch.shards_at(positions.ravel())

    def key(self, step: int) -> int:
        """What the random numbers of a step's samples are a function of, besides seed and sample: its epoch."""
        return self.epoch(step).number

    def blocks(self, epoch: Span) -> tuple[Indices, list[Indices]]:
        """The blocks of an epoch's line: their boundaries, and the nonempty shards of each.

        Nothing is cached, so that other threads may call it.
        """
        line = Line(self.counts, self.seed, epoch, self.block)
        return line.borders, [line.shards_of(block) for block in range(len(line.borders) - 1)]

    def _positions(self, step: int, count: int, rank: int, world: int) -> tuple[Line, Indices]:
        """The epoch of a step, and the positions `[lanes, samples]` in its line, ascending, that a rank reads."""
        epoch, per_lane = self.epoch(step), self.batch // self.lanes
        mine = np.arange(rank * self.lanes // world, (rank + 1) * self.lanes // world)
        stretch, until = epoch.length * per_lane, min(step + count, epoch.stop)
        taken = np.arange((step - epoch.first) * per_lane, (until - epoch.first) * per_lane)
        return self._line(epoch), mine[:, None] * stretch + taken

    def _line(self, epoch: Span) -> Line:
        if (found := self._cache.get(epoch.number)) is None:
            for old in sorted(self._cache)[:-1]:
                self._cache.pop(old, None)
            found = Line(self.counts, self.seed, epoch, self.block, max(2 * self.lanes, 16))
            self._cache[epoch.number] = found
        return found

    @cached_property
    def _begins(self) -> list[int]:
        return [part.first for part in self._stretches]

    @cached_property
    def _stretches(self) -> list[Span]:
        """The first epoch of the run, and the first one after each change."""
        parts: list[Span] = []
        for step, excluded in ((0, ()), *self.changes):
            samples = sum(self.counts) - sum(self.counts[shard] for shard in excluded)
            number, length = 0, samples // self.batch
            if parts and step:
                number = parts[-1].number - (parts[-1].first - step) // parts[-1].length
            parts = [part for part in parts if part.first < step]
            parts.append(Span(number, step, step + length, length, excluded))
        return parts


class Line:
    """The line of one epoch; the permutation of a block is computed on first use, and the last `kept` are cached."""

    def __init__(self, counts: Sequence[int], seed: int, epoch: Span, block: int, kept: int = 16) -> None:
        self.key = (seed, epoch.number)
        self.shards = np.random.default_rng([*self.key, 0]).permutation(len(counts))
        self.sizes, self.block = np.array(counts, dtype=np.int64), block
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])[:-1]
        self.sizes[list(epoch.excluded)] = 0
        ends = np.cumsum(self.sizes[self.shards])
        last = np.minimum(np.arange(block, len(counts) + block, block), len(counts)) - 1
        self.borders = np.concatenate([[0], ends[last]])
        self.dtype = np.int32 if ends[-1] < 2**31 else np.int64
        self.permuted = lru_cache(maxsize=kept)(self._permuted)

    def samples(self, positions: Indices) -> Indices:
        """The samples at these ascending positions of the line."""
        blocks = self._blocks(positions)
        cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(positions)]
        result = np.empty_like(positions)
        for start, end in pairwise(cuts):
            block = int(blocks[start])
            result[start:end] = self.permuted(block)[positions[start:end] - self.borders[block]]
        return result

    def shards_at(self, positions: Indices) -> Indices:
        return np.concatenate([self.shards_of(block) for block in np.unique(self._blocks(positions)).tolist()])

    def shards_of(self, block: int) -> Indices:
        """The nonempty shards of a block."""
        shards = self._shards(block)
        return shards[self.sizes[shards] > 0]

    def _blocks(self, positions: Indices) -> Indices:
        return np.searchsorted(self.borders, positions, side="right") - 1

    def _shards(self, block: int) -> Indices:
        return self.shards[block * self.block : (block + 1) * self.block]

    def _permuted(self, block: int) -> NDArray[np.integer]:
        shards = self._shards(block)
        laid = [np.arange(self.starts[s], self.starts[s] + self.sizes[s], dtype=self.dtype) for s in shards]
        return np.random.default_rng([*self.key, 1, block]).permutation(np.concatenate(laid))


def default_lanes(contrast: int) -> int:
    """The largest divisor of the contrast batch up to `MOST_LANES`."""
    return max(d for d in range(1, MOST_LANES + 1) if contrast % d == 0)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(values: Sequence[int], to: int) -> int:
    return min(values, key=lambda v: (abs(v - to), v))
