"""Signals and a time limit: either requests a stop at the next step boundary, after a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """`asked` becomes true after a signal or after `max_minutes` (0: no limit); a second SIGINT interrupts at once."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.reason = ""
        self._end = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")

    @property
    def asked(self) -> bool:
        if not self.reason and time.monotonic() > self._end:
            self.reason = "max_minutes reached"
        return bool(self.reason)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"
