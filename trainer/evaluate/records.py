"""The labelled records of a split on the device of a fit: all of them at once, or read ahead batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.stream import Stream
from trainer.evaluate.task import Labelled
from umbra.schema import DTYPE

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Turns:
    """Which record when: `count` records in batches of `batch`, an epoch's order a pure function of `seed` and epoch.

    Records that do not fill a batch wait for another epoch.
    """

    count: int
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.count // self.batch

    def of(self, epoch: int) -> NDArray[np.int64]:
        """Places among the records, `[steps, batch]`."""
        order = np.random.default_rng([self.seed, 0xF1, epoch]).permutation(self.count)
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)


@dataclass(frozen=True)
class Batch:
    """`signals` in mV, float32 `[B, leads, samples]`; `target` `[B, K]`; `row` `[B]` in samples.parquet."""

    signals: Tensor
    target: Tensor
    row: Tensor


class Records:
    """The records of `data` on `device`; with their signals, as int16, if these take at most `room` bytes."""

    def __init__(self, data: Labelled, device: torch.device, room: float) -> None:
        self.data, self.device = data, device
        self.target = torch.from_numpy(data.target).to(device)
        self._row = torch.from_numpy(data.row).to(device)
        shape = (len(data), *data.shards.shape)
        self.bytes = int(np.prod(shape)) * DTYPE.itemsize
        self.held: Tensor | None = None
        if self.bytes <= room:
            self.held = torch.from_numpy(data.shards.gather(data.index, np.empty(shape, DTYPE))).to(device)

    def __len__(self) -> int:
        return len(self.data)

    def shuffled(self, turns: Turns, epochs: int) -> Generator[Iterator[Batch]]:
        """The batches of each epoch. Close it to stop the threads that read ahead."""
        if self.held is not None:
            yield from (self._held_batches(self.held, turns.of(epoch)) for epoch in range(epochs))
            return
        plan = _Plan(self.data, turns)
        stream = Stream(self.data.shards, plan, 0, epochs * turns.steps, 0, 1, self.device)
        with contextlib.closing(stream):
            yield from (self._read_batches(stream, turns.of(epoch)) for epoch in range(epochs))

    def in_order(self, batch: int) -> Iterator[Tensor]:
        """The signals in mV, `batch` records at a time."""
        for start in range(0, len(self), batch):
            if self.held is None:
                yield torch.from_numpy(self.data.shards.read_mv(self.data.index[start : start + batch])).to(self.device)
            else:
                yield self._mv(self.held[start : start + batch])

    def _held_batches(self, held: Tensor, places: NDArray[np.int64]) -> Iterator[Batch]:
        for at in torch.from_numpy(places).to(self.device):
            yield Batch(self._mv(held[at]), self.target[at], self._row[at])

    def _read_batches(self, stream: Stream, places: NDArray[np.int64]) -> Iterator[Batch]:
        for at in torch.from_numpy(places).to(self.device):
            batch = next(stream)
            yield Batch(self._mv(batch.signals[0]), self.target[at], batch.rows[0])

    def _mv(self, signals: Tensor) -> Tensor:
        return signals * np.float32(self.data.shards.resolution_mv).item()  # in one pass, to float32


@dataclass(frozen=True)
class _Plan:
    """The turns of all epochs, as `Stream` wants them."""

    data: Labelled
    turns: Turns

    def steps(self, step: int, count: int, rank: int, world: int) -> NDArray[np.int64]:
        epoch, first = divmod(step, self.turns.steps)
        return self.data.index[self.turns.of(epoch)[first : first + count, None]]

    def shards(self, step: int, count: int, rank: int, world: int) -> NDArray[np.int64]:
        ends = np.cumsum(self.data.shards.counts)
        return np.unique(np.searchsorted(ends, self.data.index, side="right"))


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; elsewhere what this machine has available, or its container's limit leaves. 0: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        known.append(int(MEMINFO.read_text().partition("MemAvailable:")[2].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        known.append(max(0, limit - used))
    return min(known, default=0)
