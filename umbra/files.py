"""Atomic file writes: to a temporary file, which is flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from umbra.errors import UserError

TEMPORARY = ".partial-"
DAY = 86400.0
LOGS = (".log", ".out", ".err")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`: flushed to disk and renamed to `path` on success, removed on failure."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.uname().nodename}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    flush(path.parent)


def remove_partial(folder: Path) -> None:
    """Removes the temporary files that killed writers left in `folder`."""
    for path in folder.glob(f"*{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if left_over(path):
                path.unlink()


def left_over(path: Path) -> bool:
    """Whether a temporary file is stale: its process is dead (same host) or it is over a day old (another host)."""
    host, _, process = path.name.partition(TEMPORARY)[2].rpartition("-")
    if host == os.uname().nodename and process.isdigit():
        return not alive(int(process))
    return time.time() - path.stat().st_mtime > DAY


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically; its mode follows the umask."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically; its mode follows the umask."""
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flushes a file's content, or a folder's list of entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot fsync a folder
            raise
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Flushes a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def claim_folder(path: str | Path, key: str, own: Collection[str] | None = None) -> None:
    """Raises `UserError` if `path`, the value of `key`, cannot be a writable folder. Creates nothing.

    `own`: what a folder that holds files must have one of, to be taken as made by this command (logs may lie in it).
    """
    whole = Path(path).absolute()
    there = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"{key}={path}: {there} is not a folder; choose another {key}=DIR")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path}: no permission to write in {there}; choose another {key}=DIR")
    names = sorted(p.name for p in whole.iterdir()) if own is not None and there == whole else []
    others = [name for name in names if not name.startswith(".") and Path(name).suffix not in LOGS]
    if own is not None and others and not set(own) & set(names):
        raise UserError(f"{key}={path} holds other files ({others[0]}): choose a new or empty folder, {key}=DIR")
