"""A lock between processes, also of several machines that share a file system.

Uses file locks, which are released when their process ends. Where the file system has none, a claim file is created
exclusively: it names its owner's host and process, and its modification time is updated while the owner lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from umbra.errors import UserError
from umbra.files import alive

WAIT = 6 * 3600.0
BEAT, STALE = 5.0, 60.0
_PAUSE = 0.2


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the lock `path`. Raises `UserError` if other processes hold it for 6 hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + WAIT
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(path, limit)
            except OSError:  # the file system does not support locks
                with _claimed(path.with_name(f"{path.name}.claim"), limit):
                    yield
                return
        yield


def _wait(path: Path, limit: float) -> None:
    if time.monotonic() > limit:
        raise UserError(f"another process has held the lock {path} for {WAIT / 3600:.0f} h")
    time.sleep(_PAUSE)


@contextlib.contextmanager
def _claimed(path: Path, limit: float) -> Iterator[None]:
    """Holds the claim file `path`. Two may take over a dead process's claim at once: both then write equal bytes."""
    seen, since = 0, time.monotonic()
    while True:
        with contextlib.suppress(FileExistsError):
            with open(path, "x") as file:
                file.write(f"{os.uname().nodename} {os.getpid()}")
            break
        with contextlib.suppress(FileNotFoundError):
            if (now := path.stat().st_mtime_ns) != seen:  # timed by this machine's clock: clocks differ
                seen, since = now, time.monotonic()
            host, _, process = path.read_text().partition(" ")
            dead = host == os.uname().nodename and process.isdigit() and not alive(int(process))
            if dead or time.monotonic() > since + STALE:
                path.unlink()
                continue
        _wait(path, limit)
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        path.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
