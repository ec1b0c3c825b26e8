"""The files of a remote data set in a local folder: each is downloaded once and checked, for all processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data.remote.fetch import Closed, Download, FetchError, Remote, is_remote
from umbra.errors import UserError
from umbra.files import claim_folder, write_bytes
from umbra.parquet import Table
from umbra.schema import MANIFEST, SAMPLES, Manifest, Shard, read_manifest

PART = ".part"
POLL = 0.02


def local_root(path: str, cache: str) -> Path:
    """The folder of the data set `data.path`: the path itself, or for a remote one its folder in `data.cache`.

    Raises `UserError` as `open_data_set` does, and if a remote one has no cache.
    """
    if not is_remote(path):
        return Path(path)
    if not cache:
        raise UserError("data.path is remote: set data.cache=FOLDER, on a disk of each machine")
    claim_folder(cache, "data.cache")
    return open_data_set(Remote(path), cache)


def open_data_set(remote: Remote, cache: str | Path) -> Path:
    """The folder of the data set under `cache`, with `manifest.json` and `samples.parquet` fetched and checked.

    Raises `UserError`, naming the URL, where they are missing, damaged, of another version or inconsistent.
    """
    stopped, text = threading.Event(), io.BytesIO()
    try:
        Download(remote, MANIFEST, text).run(stopped)
    except FetchError as error:
        raise UserError(f"{error}: is data.path the folder of a finished data set?") from None
    manifest = _manifest(text.getvalue(), remote.shown(MANIFEST))
    folder = Path(cache) / manifest.fingerprint
    path = folder / SAMPLES
    with on_disk(folder, SAMPLES):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(SAMPLES + PART), stopped) as file:
            if not path.is_file():
                Download(remote, SAMPLES, file).run(stopped)
                file.flush()
                _check_samples(path.with_name(SAMPLES + PART), manifest, remote.shown(SAMPLES))
                _publish(file, path)
        write_bytes(folder / MANIFEST, text.getvalue())
    return folder


def obtain(remote: Remote, shard: Shard, folder: Path, stopped: threading.Event) -> bool:
    """Fetches a shard to `folder` unless it is there; True if it did. Of concurrent calls one fetches, others wait."""
    path = folder / shard.name
    if _is_complete(path, shard):
        return False
    with _locked(path.with_name(path.name + PART), stopped) as file:
        if _is_complete(path, shard):
            return False
        Download(remote, shard.name, file, shard.bytes, shard.sha256).run(stopped)
        _publish(file, path)
        return True


def sweep(folder: Path) -> None:
    """Removes partial downloads of processes that have ended."""
    for path in folder.glob(f"*{PART}"):
        if (file := _lock(path)) is not None:
            with file:
                path.unlink()


def _is_complete(path: Path, shard: Shard) -> bool:
    return size_of(path) == shard.bytes


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist (any more)."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _publish(file: BinaryIO, path: Path) -> None:
    """Flushes a partial file to disk and renames it to its final name."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(path.with_name(path.name + PART), path)


@contextlib.contextmanager
def _locked(path: Path, stopped: threading.Event) -> Iterator[BinaryIO]:
    """The file, created if needed, under an exclusive lock; removed at the end unless it was renamed."""
    file = _lock(path)
    while file is None:
        if stopped.wait(POLL):
            raise Closed
        file = _lock(path)
    with file:
        try:
            yield file
        finally:
            if _same(path, file):
                path.unlink()


def _lock(path: Path) -> BinaryIO | None:
    """The file, created if needed; None if it is locked elsewhere or was renamed meanwhile."""
    file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(path, file):
            return file
    file.close()
    return None


def _same(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def on_disk(folder: Path, name: str) -> Iterator[None]:
    """Turns a full disk or a folder that is not writable into a `FetchError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"no space left for {name} in data.cache={folder}: free some, or choose another folder"
            ) from None
        raise FetchError(f"data.cache={folder}: {name}: {error.strerror or error}") from None


def _manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, checked against its own geometry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST
        path.write_bytes(data)
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            raise UserError(str(error).replace(str(path), where)) from None
    geometry = manifest.geometry
    for shard in manifest.shards:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar", shard.name):
            raise UserError(f"{where} names a shard {shard.name!r}, which is not a valid name of a tar file")
        if shard.bytes != geometry.shard_bytes(shard.samples):
            raise UserError(
                f"{where}: {shard.name} has {shard.bytes} bytes, but {shard.samples} samples take "
                f"{geometry.shard_bytes(shard.samples)}: build the data set again"
            )
    return manifest


def _check_samples(path: Path, manifest: Manifest, where: str) -> None:
    counts = [shard.samples for shard in manifest.shards]
    try:
        shard = Table(path, "copy it again").read(["shard"]).column("shard").to_numpy()
    except UserError as error:
        raise UserError(str(error).replace(str(path), where)) from None
    if not np.array_equal(shard, np.repeat(np.arange(len(counts)), counts)):
        raise UserError(f"{where} does not match the rows of its manifest: copy both again from one build")
