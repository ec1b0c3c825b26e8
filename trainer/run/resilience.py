"""Signals and a time limit: either requests a stop at the next step boundary, after a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.run.terminal import tell

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAID = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the terminal was closed"}


class Stop:
    """`asked` becomes true after a signal or after `max_minutes` (0: no limit); a second SIGINT ends at once.

    `speaks`: whether this process says at once that it has been asked. An ignored SIGHUP (`nohup`) remains so.
    """

    def __init__(self, max_minutes: float = 0.0, speaks: bool = True) -> None:
        self.reason = ""
        self._speaks = speaks
        self._end = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")

    @property
    def asked(self) -> bool:
        if not self.reason and time.monotonic() > self._end:
            self.reason = "max_minutes reached"
        return bool(self.reason)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        hup = signal.getsignal(signal.SIGHUP)
        heard = [n for n in SIGNALS if n != signal.SIGHUP or hup != signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one, even where Python does not run
        if self.reason:
            return
        self.reason = SAID.get(signal.Signals(number), f"signal {signal.Signals(number).name}")
        if self._speaks:
            again = ", Ctrl-C again ends now" if number == signal.SIGINT else ""
            tell(f"\n# {self.reason}: saving{again}")
