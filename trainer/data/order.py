"""Which sample when: a pure function of the shard counts, the seed, the global batch, the lanes and the block.

Each epoch permutes the shards, takes them in blocks, permutes the samples within each block and lays the blocks end to
end: the *line*. The line is cut into `lanes` equal stretches; the global batch of a step takes the next samples of
every lane. So no sample comes twice in an epoch, every epoch has floor(N / G) steps, the global batches are the same at
any world size, and the whole state of the loader is the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sharding.config import UserError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """`counts` samples per shard, global batch `batch`, `micro` contrast batches in it, `block` shards a block."""

    counts: tuple[int, ...]
    seed: int
    batch: int
    lanes: int
    micro: int = 1
    block: int = 8
    _cache: dict[int, _Epoch] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        total, contrast = sum(self.counts), self.batch // max(self.micro, 1)
        if self.batch % self.micro:
            raise UserError(f"batch.contrast={contrast} does not divide batch.global={self.batch}")
        if contrast % self.lanes:
            near = max((d for d in _divisors(contrast) if d <= self.lanes), default=1)
            raise UserError(f"data.lanes={self.lanes} does not divide the contrast batch {contrast}; nearest: {near}")
        if total < self.batch:
            raise UserError(
                f"batch.global={self.batch} is larger than the {total} training samples; use {total} or fewer"
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.counts) // self.batch

    def ranks(self, world: int) -> None:
        """Raises `UserError` if `world` ranks cannot share the lanes."""
        if self.lanes % world:
            near = [d for d in _divisors(self.lanes)]
            raise UserError(
                f"{world} processes cannot share data.lanes={self.lanes}; use {_nearest(near, world)} processes, "
                f"or data.lanes={_multiples(self.batch // self.micro, world)}"
            )

    def step(self, step: int, rank: int = 0, world: int = 1) -> Indices:
        """Sample indices `[micro, share]` (into the shards laid end to end) of one rank at a global step."""
        return self.steps(step, 1, rank, world)[0]

    def steps(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """`step` for several steps at once, `[n, micro, share]`: `count` of them, or those up to the epoch's end."""
        epoch, positions = self._positions(step, count, rank, world)
        n = positions.shape[1] * self.lanes // self.batch
        samples = epoch.samples(positions.ravel()).reshape(len(positions), n, self.micro, -1)
        return samples.transpose(1, 2, 0, 3).reshape(n, self.micro, -1)

    def shards(self, step: int, count: int, rank: int = 0, world: int = 1) -> Indices:
        """The shards, none of them empty, of the blocks in which a rank's lanes stand at these steps; same end."""
        epoch, positions = self._positions(step, count, rank, world)
        return epoch.shards_at(positions.ravel())

    def _positions(self, step: int, count: int, rank: int, world: int) -> tuple[_Epoch, Indices]:
        """The epoch of a step, and the places `[lanes, samples]` in its line, ascending, that a rank takes."""
        epoch, within = divmod(step, self.steps_per_epoch)
        per_lane = self.batch // self.lanes
        mine = np.arange(rank * self.lanes // world, (rank + 1) * self.lanes // world)
        stretch = self.steps_per_epoch * per_lane
        taken = np.arange(within * per_lane, min(within + count, self.steps_per_epoch) * per_lane)
        return self._epoch(epoch), mine[:, None] * stretch + taken

    def _epoch(self, epoch: int) -> _Epoch:
        if (found := self._cache.get(epoch)) is None:
            for old in sorted(self._cache)[:-1]:
                self._cache.pop(old, None)
            found = self._cache[epoch] = _Epoch(self.counts, self.seed, epoch, self.block, max(2 * self.lanes, 16))
        return found

    def blocks(self, epoch: int) -> tuple[Indices, list[Indices]]:
        """The blocks of an epoch's line: the places where they begin and the last ends, and the shards of each.

        No shard of them is empty. Nothing of it is kept, so that another thread may ask.
        """
        line = _Epoch(self.counts, self.seed, epoch, self.block)
        return line.borders, [line.shards_of(block) for block in range(len(line.borders) - 1)]


class _Epoch:
    """The line of one epoch; the permutation of a block is made when it is first asked for, and `kept` of them stay."""

    def __init__(self, counts: Sequence[int], seed: int, epoch: int, block: int, kept: int = 16) -> None:
        self.key = (seed, epoch)
        self.shards = np.random.default_rng([seed, epoch, 0]).permutation(len(counts))
        self.sizes, self.block = np.asarray(counts, dtype=np.int64), block
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])[:-1]
        ends = np.cumsum(self.sizes[self.shards])
        last = np.minimum(np.arange(block, len(counts) + block, block), len(counts)) - 1
        self.borders = np.concatenate([[0], ends[last]])
        self.dtype = np.int32 if ends[-1] < 2**31 else np.int64
        self.permuted = lru_cache(maxsize=kept)(self._permuted)

    def samples(self, positions: Indices) -> Indices:
        """The samples at these places of the line, which ascend."""
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
        """The shards of a block, none of them empty."""
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


def default_lanes(contrast: int, most: int = 64) -> int:
    """The largest divisor of the contrast batch up to `most`."""
    return max(d for d in _divisors(contrast) if d <= most)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(values: Sequence[int], to: int) -> int:
    return min(values, key=lambda v: (abs(v - to), v))


def _multiples(contrast: int, world: int) -> str:
    good = [d for d in _divisors(contrast) if d % world == 0]
    return str(good[-1]) if good else f"... after a batch.contrast that {world} divides"
