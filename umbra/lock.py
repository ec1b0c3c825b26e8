"""A lock between processes, also of several machines that share a file system.

Uses file locks, which are released when their process ends. Where the file system has none, a claim file is created
exclusively, and its modification time is updated while its owner lives. Either file names its owner's host and process.
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


class Held(UserError):
    """A lock is held by process `process` of `host`, empty if that is not known."""

    def __init__(self, path: Path, said: str) -> None:
        self.host, self.process = _holder(path)
        who = f" (process {self.process} on {self.host})" if self.process else ""
        super().__init__(f"another process has {said}{who}")


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock `path`. Raises `Held` if another process holds it for 6 hours, or at all unless `wait`.

    Without file locks it takes `STALE` seconds to see that a process of another host is dead, and about `BEAT` that it
    lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + WAIT
    with open(path, "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(path, limit, wait)
            except OSError:  # the file system does not support locks
                with _claimed(_claim_of(path), limit, wait):
                    yield
                return
        file.truncate(0)
        file.write(_own())
        file.flush()
        yield


def abandoned(path: Path) -> bool:
    """Whether the lock names a process of this host that is no more; false where that cannot be known."""
    named = [_holder(place) for place in (path, _claim_of(path))]
    return any(map(_is_dead, named))


def _claim_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.claim")


def _is_dead(holder: tuple[str, str]) -> bool:
    host, process = holder
    return host == os.uname().nodename and process.isdigit() and not alive(int(process))


def _own() -> str:
    return f"{os.uname().nodename} {os.getpid()}"


def _holder(path: Path) -> tuple[str, str]:
    """(host, process) that a lock or claim file names; empty if its owner has not written them yet."""
    with contextlib.suppress(FileNotFoundError):
        host, _, process = path.read_text().partition(" ")
        return host, process
    return "", ""


def _wait(path: Path, limit: float, wait: bool) -> None:
    if not wait:
        time.sleep(_PAUSE)  # its owner may be about to write its name
        raise Held(path, f"the lock {path}")
    if time.monotonic() > limit:
        raise Held(path, f"held the lock {path} for {WAIT / 3600:.0f} h")
    time.sleep(_PAUSE)


@contextlib.contextmanager
def _claimed(path: Path, limit: float, wait: bool) -> Iterator[None]:
    """Holds the claim file `path`; that of a dead process is taken over."""
    first = seen = _modified(path)
    since = time.monotonic()
    while not _create(path):
        if (now := _modified(path)) != seen:  # timed by this machine's clock: clocks differ
            seen, since = now, time.monotonic()
        host, process = _holder(path)
        if _is_dead((host, process)) or time.monotonic() > since + STALE:
            path.unlink(missing_ok=True)
            continue
        known = host == os.uname().nodename and process.isdigit()
        _wait(path, limit, wait or (seen == first and not known))
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Whether the claim is now ours. Of two that take over a dead one's, one may remove the claim of the other: it is
    ours if it still is so after a pause."""
    with contextlib.suppress(FileExistsError):
        with open(path, "x") as file:
            file.write(_own())
        time.sleep(_PAUSE)
        return _holder(path) == tuple(_own().split(" "))
    return False


def _modified(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
