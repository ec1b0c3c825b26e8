"""One process at a time, over any file system that machines share.

By file locks, which end with their process; where there are none, by a file that one process can create, that says who
did, and whose time moves as long as that one lives.
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
    """Raises `UserError` if another process has it for 6 hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + WAIT
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(path, limit)
            except OSError:  # the file system has no locks
                with _claimed(path.with_name(f"{path.name}.claim"), limit):
                    yield
                return
        yield


def _wait(path: Path, limit: float) -> None:
    if time.monotonic() > limit:
        raise UserError(f"another process has planned for {WAIT / 3600:.0f} h: see {path}")
    time.sleep(_PAUSE)


@contextlib.contextmanager
def _claimed(path: Path, limit: float) -> Iterator[None]:
    """Holds the file `path`. Two may take over a dead process's at once: what they do then gives equal bytes."""
    seen, since = 0, time.monotonic()
    while True:
        with contextlib.suppress(FileExistsError):
            with open(path, "x") as file:
                file.write(f"{os.uname().nodename} {os.getpid()}")
            break
        with contextlib.suppress(FileNotFoundError):
            if (now := path.stat().st_mtime_ns) != seen:  # by our own clock: those of machines differ
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
