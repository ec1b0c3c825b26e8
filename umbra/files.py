"""Files that are whole or refused: atomic writes, folders that can be written, and readers of what may be damaged.

A file is written to a temporary one, which is flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from umbra.errors import UserError
from umbra.typed import typed

TEMPORARY = ".partial-"
DAY = 86400.0
LOGS = (".log", ".out", ".err")
T = TypeVar("T")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`: flushed to disk and renamed to `path` on success, removed on failure.

    Raises `UserError` if the folder or the file cannot be made.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.uname().nodename}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("wb").close()
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another place, or make it writable") from error
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    flush(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder next to `path`: on success moved to `path`, in place of an older one; removed on failure.

    Each file in it must be flushed by its writer, as those of this module are.
    """
    place = path.resolve()
    temporary, old = (place.with_name(f".{place.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            place.rename(old)
        temporary.rename(place)
        flush(place.parent)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
    """Raises `UserError` if `path`, the value of `key`, cannot be a writable folder. Leaves nothing behind.

    `own`: names one of which a folder with files must hold, to be taken as made by this command (logs may lie in it).
    """
    whole = Path(path).absolute()
    fix = f"choose another {key}=DIR"
    there = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not os.path.isdir(there):
        raise UserError(f"{key}={path}: {there} is not a folder; {fix}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path}: no permission to write in {there}; {fix}")
    if there != whole:  # not in `whole` itself, where another process may count the files
        with _making(path, key):
            tempfile.TemporaryDirectory(prefix=".umbra-", dir=there).cleanup()
    elif own is not None:
        _refuse_others(whole, key, own)


def _refuse_others(folder: Path, key: str, own: Collection[str]) -> None:
    names = sorted(path.name for path in folder.iterdir())
    files = [name for name in names if not name.startswith(".") and TEMPORARY not in name]
    others = [name for name in files if Path(name).suffix not in LOGS]
    if others and not set(own) & set(names):
        raise UserError(f"{key}={folder} holds other files ({others[0]}): choose a new or empty folder, {key}=DIR")


def make_folder(path: str | Path, key: str) -> Path:
    """The folder `path`, the value of `key`, made if it is not there. Raises `UserError` where it cannot be."""
    claim_folder(path, key)
    with _making(path, key):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextlib.contextmanager
def _making(path: str | Path, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{key}={path}: the folder cannot be made ({error.strerror}); choose another {key}=DIR"
        ) from error


# ---- readers ----


def damaged(path: str | Path, why: object, fix: str) -> UserError:
    """The error for a damaged file: one line with the first line of `why` and what to do."""
    reason = (str(why).strip().splitlines() or [type(why).__name__])[0]
    return UserError(f"{path} is damaged ({reason}): {fix}")


def read_text(path: Path, fix: str) -> str:
    """The text of a UTF-8 file. Raises `UserError`, which ends in `fix`, if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from error
    except ValueError as error:
        raise damaged(path, "it is not text", fix) from error


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises `UserError`, which ends in `fix`, if there is none."""
    return _parsed(json.loads, path, fix, dict[str, Any])


def read_json_as(kind: type[T], path: Path, fix: str) -> T:
    """The content of a JSON file as `kind` (see `typed`). Raises `UserError`, which ends in `fix`, if it is not."""
    return _parsed(json.loads, path, fix, kind)


def read_yaml(path: Path, fix: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError`, which ends in `fix`, if there is none."""
    import yaml

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error

    return _parsed(parse, path, fix, dict[str, Any])


def _parsed(parse: Callable[[str], Any], path: Path, fix: str, kind: type[T]) -> T:
    text = read_text(path, fix)
    try:
        return typed(kind, parse(text))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, fix) from error


def read_json_lines(path: Path, kind: type[T]) -> list[T]:
    """The lines of a JSON-lines file that are of `kind`; others, which a crash cut off, are skipped.

    A missing file has none.
    """
    rows = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(typed(kind, json.loads(line)))
    return rows
