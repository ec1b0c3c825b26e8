"""Samples per second, and the fraction of time spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Throughput:
    """Samples per second and fraction of time spent waiting for data, without the first `skip` steps of this process.

    with throughput.waiting():
        batch = next(batches)
    ...
    throughput.step(samples)     # of all ranks
    """

    def __init__(self, skip: int = 3, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._skip = skip
        self._restart()

    def _restart(self) -> None:
        self._since = self._clock()
        self._samples = 0
        self._waited = 0.0
        self._depths: list[int] = []

    def found(self, depth: int) -> None:
        """Records how many batches were ready when one was requested."""
        self._depths.append(depth)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the block as waiting for data."""
        begin = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the block (validation, a checkpoint)."""
        begin = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - begin

    def step(self, samples: int) -> None:
        """Marks the end of a step on `samples` samples."""
        if self._skip > 0:
            self._skip -= 1
            self._restart()
        else:
            self._samples += samples

    def take(self) -> dict[str, float]:
        """`samples_per_s`, `data_wait` (0 to 1) and `queue_depth` (mean, if any) since the last `take`; or nothing."""
        seconds = self._clock() - self._since
        if not self._samples or seconds <= 0:
            return {}
        result = {"samples_per_s": self._samples / seconds, "data_wait": self._waited / seconds}
        if self._depths:
            result["queue_depth"] = sum(self._depths) / len(self._depths)
        self._restart()
        return result
