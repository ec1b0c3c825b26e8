"""A timeout for reading one record or folder: a read that hangs can only be stopped by ending the process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

HANGS = "could not be read in time (timeout=SECONDS): does its file system hang?"
LISTING_HANGS = "could not be listed in time (timeout=SECONDS): does its file system hang?"
_PERIOD = 0.5
_current: tuple[float, float, Callable[[], str]] | None = None
_thread: threading.Thread | None = None


@contextlib.contextmanager
def limit(seconds: float, expired: Callable[[], str]) -> Iterator[None]:
    """Exits with code 2 if the block takes longer; `expired()` records the failure and returns the line to print."""
    global _current, _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_look, daemon=True)
        _thread.start()
    _current = (time.monotonic() + seconds, seconds, expired)
    try:
        yield
    finally:
        _current = None


def restart() -> None:
    """Restarts the timer of the running block, because it has made progress."""
    global _current
    if _current is not None:
        _, seconds, expired = _current
        _current = (time.monotonic() + seconds, seconds, expired)


def _look() -> None:
    while True:
        time.sleep(_PERIOD)
        now = _current
        if now is not None and time.monotonic() > now[0]:
            try:
                print(f"error: {now[2]()}", file=sys.stderr, flush=True)
            finally:
                os._exit(2)
