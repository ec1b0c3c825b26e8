"""Remote shards: fetched ahead into a bounded folder that the processes of a machine share.

Which shards a machine needs at which steps follows from the order of samples alone (`needs`). The first process of a
machine fetches them in that order and removes what all its processes have read; the others wait for its word. The two
speak through a few integers in a memory-mapped file, the *board*. Runs may share a folder: a download is locked, and on
its board a run claims what it needs, so that no other removes it. Locks and claims end with their process.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import io
import os
import random
import re
import select
import shlex
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.config import UserError
from sharding.files import write_bytes
from sharding.schema import MANIFEST, SAMPLES, Manifest, Shard, fingerprint, read_manifest
from trainer.data.order import Order

CHUNK = 1 << 20
PART = ".part"
BOARD = "board-"
WORDS = 128  # integers in the place of a text of 1 KiB
POLL = 0.02
NEVER = np.iinfo(np.int64).max
TRY_AGAIN = (408, 425, 429)


class ShardError(UserError):
    """A shard that cannot be had. `shard` names it; `step` is the first step that needs it and was not begun."""

    def __init__(self, message: str, shard: str, step: int) -> None:
        super().__init__(message)
        self.shard, self.step = shard, step


class FetchError(UserError):
    """A file that cannot be fetched; the message names it without the query and the credentials of its URL."""


class _Closed(Exception):
    """The run ends: whatever is under way is left."""


class _Again(Exception):
    """What may be otherwise on another try; with `anew` the bytes so far are worth nothing."""

    def __init__(self, why: str, anew: bool = False) -> None:
        super().__init__(why)
        self.anew = anew


# --- which shards when: pure -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Shard number `shard` is read at some of the global steps `first` to `last`."""

    shard: int
    first: int
    last: int


def lanes_of(ranks: Iterable[int], world: int, lanes: int) -> list[int]:
    """The lanes of these ranks of `world`, ascending."""
    return sorted(lane for r in ranks for lane in range(r * lanes // world, (r + 1) * lanes // world))


def needs(order: Order, lanes: Sequence[int], start: int, stop: int) -> Iterator[Need]:
    """What these lanes need for the steps `start` to `stop - 1`, in order of need.

    A shard comes once an epoch, or twice if a lane border cuts its block and no lane of these needs it in between.
    """
    order, length = replace(order, _cache={}), order.steps_per_epoch
    for epoch in range(start // length, -(-stop // length)):
        for need in _epoch_needs(order, lanes, epoch):
            if need.last >= start and need.first < stop:
                yield Need(need.shard, max(need.first, start), min(need.last, stop - 1))


def smallest(needed: Iterable[Need], sizes: Sequence[int]) -> int:
    """The most bytes that are needed at one and the same step: with less the run cannot go on, with it it can."""
    rows = [(need.first, need.last, sizes[need.shard]) for need in needed]
    first, last, size = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    steps, change = np.concatenate([first, last + 1]), np.concatenate([size, -size])
    return int(np.cumsum(change[np.lexsort((change, steps))]).max(initial=0))


def smallest_of_run(order: Order, lanes: Sequence[int], start: int, stop: int, sizes: Sequence[int]) -> int:
    """`smallest` over all epochs, one at a time."""
    length = order.steps_per_epoch
    borders = [start, *range((start // length + 1) * length, stop, length), stop]
    return max(smallest(needs(order, lanes, a, b), sizes) for a, b in pairwise(borders))


def _epoch_needs(order: Order, lanes: Sequence[int], epoch: int) -> list[Need]:
    line = order._epoch(epoch)
    per_lane = order.batch // order.lanes
    stretch, base = order.steps_per_epoch * per_lane, epoch * order.steps_per_epoch
    spans: dict[int, list[tuple[int, int]]] = {}
    for begin in (lane * stretch for lane in lanes):
        low, high = np.searchsorted(line.borders, [begin, begin + stretch], "right") - 1
        places = np.clip(line.borders[low : high + 2] - begin, 0, stretch).tolist()
        for block, (a, b) in enumerate(pairwise(places), int(low)):
            if b > a:
                spans.setdefault(block, []).append((a // per_lane, (b - 1) // per_lane))
    result = []
    for block, several in spans.items():
        shards = line.shards[block * order.block : (block + 1) * order.block].tolist()
        result += [Need(s, base + a, base + b) for a, b in _merged(several) for s in shards if line.sizes[s]]
    return sorted(result, key=lambda need: need.first)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Inclusive intervals, those that overlap or touch made one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


# --- how a file comes over ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """`stall`: seconds without a byte that end a try; `attempts`: tries in a row that bring nothing new; `pause` to
    `longest`: seconds between tries, doubling, with jitter; `total` seconds and `slowest` bytes/s: the time of a file.
    """

    stall: float = 30.0
    attempts: int = 6
    pause: float = 1.0
    longest: float = 30.0
    total: float = 240.0
    slowest: float = 1e6


def is_remote(path: str) -> bool:
    """True for a URL (`http://`, `https://`, `s3://`, `gs://`, ...) and for `pipe:COMMAND`."""
    return path.startswith("pipe:") or "://" in path


@dataclass(frozen=True)
class Remote:
    """The folder of a data set behind a URL. A file's name goes where the URL has `{}`, or else to the end of its path.

    HTTP(S) is read with Python's own client, all else through `webdataset.gopen`; `s3://` needs `aws` installed.
    """

    url: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.url.startswith("pipe:"):
            return
        try:
            known = bool(urlsplit(self.url).netloc) or self.url.startswith("file:")
        except ValueError:
            known = False
        if not known:
            raise UserError(f"data.path={self.url.partition('?')[0]} is no URL of a folder, as http://HOST/FOLDER")

    def where(self, name: str) -> str:
        """The URL of a file."""
        if "{}" in self.url:
            return self.url.replace("{}", name)
        if self.url.startswith("pipe:"):
            return f"{self.url.rstrip('/')}/{name}"
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()

    def shown(self, name: str) -> str:
        """The URL of a file without its query and credentials; of a command only its first word."""
        url = self.where(name)
        if url.startswith("pipe:"):
            return f"{(url.split() or [url])[0]} ... {name}"
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def open(self, name: str, offset: int) -> tuple[int, Generator[bytes, None, None]]:
        """The bytes of a file from `offset` on, or from 0 where that cannot be had -> (where they begin, chunks)."""
        parts = urlsplit(self.where(name))
        if parts.scheme in ("http", "https"):
            return _open_http(parts, offset, self.limits.stall)
        return 0, _through_gopen(self.where(name), self.limits.stall)


class Download:
    """A remote file on its way to `file`; its size and hash are checked where they are given."""

    def __init__(self, remote: Remote, name: str, file: BinaryIO, size: int | None = None, sha256: str = "") -> None:
        self.remote, self.name, self.file, self.size, self.sha256 = remote, name, file, size, sha256
        self._anew()

    def run(self, stopped: threading.Event) -> None:
        """Fetches it: a cut is resumed where it was, what else fails is tried again as `remote.limits` says.

        Raises `FetchError`.
        """
        limits, best, failures, tries = self.remote.limits, 0, 0, 0
        self._end = time.monotonic() + limits.total + (self.size or 0) / limits.slowest
        while True:
            tries += 1
            try:
                return self._try(stopped)
            except FetchError as error:
                raise FetchError(f"{self.remote.shown(self.name)}: {error}") from None
            except _Again as error:
                failures = 0 if self.file.tell() > best and not error.anew else failures + 1
                best = max(best, self.file.tell())
                if error.anew or self.size is None:
                    self._anew()
                if failures >= limits.attempts or time.monotonic() > self._end:
                    raise FetchError(f"{self.remote.shown(self.name)}: {error} ({tries} tries)") from None
            pause = min(limits.longest, limits.pause * 2 ** max(failures - 1, 0))
            if stopped.wait(pause * random.uniform(0.5, 1)):
                raise _Closed

    def _try(self, stopped: threading.Event) -> None:
        begins, chunks = self.remote.open(self.name, self.file.tell())
        with contextlib.closing(chunks):
            if begins != self.file.tell():
                self._anew()
            for chunk in chunks:
                if stopped.is_set():
                    raise _Closed
                self.file.write(chunk)
                self._digest.update(chunk)
                if self.size is not None and self.file.tell() > self.size:
                    raise _Again(f"it is longer than the {self.size} bytes of the manifest", anew=True)
                if time.monotonic() > self._end:
                    raise _Again(f"too slow: {self.file.tell()} bytes when its time was over")
        if self.size is not None and self.file.tell() < self.size:
            raise _Again(f"it ended after {self.file.tell()} of {self.size} bytes")
        if self.sha256 and self._digest.hexdigest() != self.sha256:
            raise _Again("its bytes are not those of the manifest (sha256)", anew=True)

    def _anew(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self._digest = hashlib.sha256()


def _open_http(parts: SplitResult, offset: int, stall: float) -> tuple[int, Generator[bytes, None, None]]:
    user, at, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "umbra", "Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=headers)
    if at:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    with _http_errors():
        response = urllib.request.urlopen(request, timeout=stall)
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        response.close()
        raise _Again("the server sent another part than asked for", anew=True)
    return offset if response.status == 206 else 0, _http_chunks(response)


def _http_chunks(response: http.client.HTTPResponse) -> Generator[bytes, None, None]:
    left = response.length
    with response:
        while True:
            with _http_errors():
                chunk = response.read1(CHUNK)
            if not chunk:
                break
            yield chunk
            left = None if left is None else left - len(chunk)
    if left:
        raise _Again(f"the connection ended {left} bytes early")


@contextlib.contextmanager
def _http_errors() -> Iterator[None]:
    """What the client raises, as `FetchError` where another try is of no use, else `_Again`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if 400 <= error.code < 500 and error.code not in (*TRY_AGAIN, 416):
            raise FetchError(f"HTTP {error.code} {error.reason}") from None
        raise _Again(f"HTTP {error.code} {error.reason}", anew=error.code == 416) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise FetchError(f"this is no valid URL: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FetchError(f"certificate not accepted: {reason.verify_message}") from None
        if isinstance(reason, TimeoutError):
            raise _Again("the server stalled") from None
        raise _Again(f"{type(reason).__name__} {reason}".strip()) from None


def _through_gopen(url: str, stall: float) -> Generator[bytes, None, None]:
    from webdataset.gopen import Pipe, gopen, gopen_schemes

    scheme = url.partition(":")[0]
    if scheme == "s3" and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    elif scheme not in gopen_schemes and scheme != "file":
        known = ", ".join(sorted({*gopen_schemes, "s3", "file"} - {"__default__"}))
        raise FetchError(f"webdataset has no opener for {scheme}:; there are {known}")
    try:
        stream = gopen(url, "rb")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise FetchError(f"{error.filename} does not exist on this machine") from None
        raise _Again(f"{type(error).__name__} {error.strerror}") from None
    if isinstance(stream, Pipe):
        yield from _pipe_chunks(stream, stall)
        return
    with contextlib.closing(stream):
        while chunk := stream.read(CHUNK):
            yield chunk


def _pipe_chunks(pipe: object, stall: float) -> Generator[bytes, None, None]:
    process: subprocess.Popen = pipe.proc  # type: ignore[attr-defined]
    assert process.stdout is not None
    try:
        while True:
            if not select.select([process.stdout], [], [], stall)[0]:
                raise _Again("the command stalled")
            chunk = os.read(process.stdout.fileno(), CHUNK)
            if not chunk:
                break
            yield chunk
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stall)
        if process.returncode == 127:
            raise FetchError("the command is not installed")
        if process.returncode != 0:
            raise _Again(f"the command ended with exit code {process.returncode}")
    finally:
        process.kill()
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[attr-defined]


# --- the folder --------------------------------------------------------------------------------------------------


def open_data_set(remote: Remote, cache: str | Path) -> Path:
    """The folder of the data set under `cache`, with `manifest.json` and `samples.parquet` fetched and checked.

    Raises `UserError`, naming the URL, where they are missing, damaged, of another version or do not fit together.
    """
    stopped, text = threading.Event(), io.BytesIO()
    try:
        Download(remote, MANIFEST, text).run(stopped)
    except FetchError as error:
        raise UserError(f"{error}: is data.path the folder of a finished data set?") from None
    manifest = _manifest(text.getvalue(), remote.shown(MANIFEST))
    folder = Path(cache) / manifest.fingerprint
    path = folder / SAMPLES
    with _disk(folder, SAMPLES):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(SAMPLES + PART), stopped) as file:
            if not path.is_file():
                Download(remote, SAMPLES, file).run(stopped)
                file.flush()
                _check_samples(path.with_name(SAMPLES + PART), manifest, remote.shown(SAMPLES))
                _put(file, path)
        write_bytes(folder / MANIFEST, text.getvalue())
    return folder


def obtain(remote: Remote, shard: Shard, folder: Path, stopped: threading.Event) -> bool:
    """Fetches a shard to `folder` if it is not there; True if it did. Of several that ask, one fetches, others wait."""
    path = folder / shard.name
    if _there(path, shard):
        return False
    with _locked(path.with_name(path.name + PART), stopped) as file:
        if _there(path, shard):
            return False
        Download(remote, shard.name, file, shard.bytes, shard.sha256).run(stopped)
        _put(file, path)
        return True


def _there(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes


def _put(file: BinaryIO, path: Path) -> None:
    """Flushes a part to disk and gives it its own name."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(path.with_name(path.name + PART), path)


@contextlib.contextmanager
def _locked(path: Path, stopped: threading.Event) -> Iterator[BinaryIO]:
    """A new or old file under an exclusive lock; removed at the end unless it was given another name."""
    file = _lock(path)
    while file is None:
        if stopped.wait(POLL):
            raise _Closed
        file = _lock(path)
    with file:
        try:
            yield file
        finally:
            if _same(path, file):
                path.unlink()


def _lock(path: Path) -> BinaryIO | None:
    """The file, made if need be, if nobody else holds its lock and it still has this name."""
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
def _disk(folder: Path, name: str) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, as a `FetchError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"no space left for {name} in data.cache={folder}: free some, or choose another") from None
        raise FetchError(f"data.cache={folder}: {name}: {error.strerror or error}") from None


def _manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, checked against its own fingerprint and geometry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST
        path.write_bytes(data)
        try:
            manifest = read_manifest(folder)
        except UnicodeDecodeError:
            raise UserError(f"{where} is damaged: it is no text; copy it again") from None
        except UserError as error:
            raise UserError(str(error).replace(str(path), where)) from None
    geometry, shards = manifest.geometry, manifest.shards
    if manifest.fingerprint != fingerprint(shards, geometry, manifest.rate, manifest.leads, manifest.resolution_uv):
        raise UserError(f"{where} does not match its own fingerprint: it was changed by hand; build the data set anew")
    for shard in shards:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar", shard.name):
            raise UserError(f"{where} names a shard {shard.name!r}, which is no name of a tar")
        if shard.bytes != geometry.shard_bytes(shard.samples):
            raise UserError(
                f"{where}: {shard.name} has {shard.bytes} bytes, {shard.samples} samples make "
                f"{geometry.shard_bytes(shard.samples)}: build the data set anew"
            )
    return manifest


def _check_samples(path: Path, manifest: Manifest, where: str) -> None:
    counts = [shard.samples for shard in manifest.shards]
    try:
        shard = pq.read_table(path, columns=["shard"]).column("shard").to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where} is damaged: copy it again ({str(error).splitlines()[0]})") from None
    if not np.array_equal(shard, np.repeat(np.arange(len(counts)), counts)):
        raise UserError(f"{where} has not the rows of the manifest beside it: copy both again from one build")


# --- the processes of a machine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """This process among those of its machine: `ranks` are theirs in a run of `world`, `rank` is its own."""

    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == self.ranks[0]


class Board:
    """The integers through which the processes of a machine speak, int64, each with one writer.

    `ready`: the shards of all steps before it are in place. `failed`: the first step whose shards never will be, and
    words that say why (the file has its size from the start: a full disk takes nothing from it). `done`: a process has
    read all steps before it; one number a process. `claims`: 1 for each shard that must stay. The leader holds a lock
    on the file for as long as it lives.
    """

    def __init__(self, folder: Path, token: str, node: Node, shards: int, start: int) -> None:
        self._path, ranks = folder / f"{BOARD}{token}", len(node.ranks)
        if node.leads:
            values = np.array([start, NEVER, ranks, *[start] * ranks, *[0] * (WORDS + shards)], np.int64)
            new = self._path.with_name(f".{self._path.name}")
            values.tofile(new)
            self._file: BinaryIO = open(new, "r+b")  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.replace(new, self._path)
        else:
            self._file = _wait_for(self._path)
        self._values = np.memmap(self._file, np.int64, "r+")
        self.done, words, self.claims = np.split(self._values[3:], [ranks, ranks + WORDS])
        self._words = words.view(np.uint8)
        self._mine = node.ranks.index(node.rank)

    @property
    def ready(self) -> int:
        return int(self._values[0])

    @ready.setter
    def ready(self, step: int) -> None:
        self._values[0] = step

    @property
    def failed(self) -> int:
        return int(self._values[1])

    def fail(self, step: int, shard: str, message: str) -> None:
        """Leader only. The earliest step counts."""
        if step < self.failed:
            words = f"{shard}\n{message}".encode()[: len(self._words)]
            self._words[:] = np.frombuffer(words.ljust(len(self._words), b"\0"), np.uint8)
            self._values[1] = step

    def failure(self) -> ShardError | None:
        if self.failed == NEVER:
            return None
        shard, _, message = self._words.tobytes().rstrip(b"\0").decode(errors="ignore").partition("\n")
        return ShardError(message, shard, self.failed)

    def has_read(self, step: int) -> None:
        self.done[self._mine] = step + 1

    def leader_lives(self) -> bool:
        """Asked by the others."""
        return _held(self._file)

    def close(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing would not do: the mapping holds a copy of the descriptor
        self._file.close()


def _wait_for(path: Path, patience: float = 120.0) -> BinaryIO:
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            raise FetchError(f"data.cache: the process that fetches the shards of this machine did not make {path}")
        time.sleep(POLL)
    return open(path, "r+b")


def _held(file: BinaryIO) -> bool:
    """True if another process holds an exclusive lock on the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _claimed_by_others(folder: Path, own: Board) -> set[int]:
    """The shards on the boards of other runs that live; boards without a living leader are removed."""
    found: set[int] = set()
    for path in folder.glob(f"{BOARD}*"):
        if path == own._path:
            continue
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if _held(file):
                values = np.fromfile(file, np.int64)
                found |= set(np.flatnonzero(values[3 + values[2] + WORDS :]).tolist())
            else:
                path.unlink()
    return found


# --- the cache ---------------------------------------------------------------------------------------------------


def budget(gb: float, least: int, whole: int, folder: Path) -> int:
    """Bytes that the cache may take. `gb` = 0: twice the smallest that works, at most `whole`, all there is to fetch.

    Raises `UserError` if `gb` is less than the smallest that works (`least` bytes), or more than the disk has room for.
    """
    if gb and gb * 1e9 < least:
        raise UserError(
            f"data.cache_gb={gb:g} is too small: {_gb(least)} is the smallest that works; a lower data.block_shards or "
            "data.lanes needs less"
        )
    size = min(int(gb * 1e9) or 2 * least, whole)
    folder.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.glob("*.tar"))
    if room < size:
        raise UserError(
            f"data.cache={folder} has {room / 1e9:.3f} GB to spare, not {_gb(size)}: free some, choose another, or set "
            f"data.cache_gb to less ({_gb(least)} is the smallest that works)"
        )
    return size


def _gb(size: int) -> str:
    return f"{-(-size // 1_000_000) / 1000:g}"


class Cache:
    """The shards of a run on one machine. `wait(step)` before a step's samples are read, `done(step)` after.

    `plan` names shards by their number among `shards`, of which `pinned` stay for the whole run; it may use `size`
    bytes. `token` is the same for all processes of this start of the run and for no other. The fetching threads run in
    the first process of the machine.
    """

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        shards: Sequence[Shard],
        plan: Iterable[Need],
        size: int,
        node: Node,
        start: int,
        stop: int,
        token: str,
        pinned: Sequence[int] = (),
        threads: int = 4,
    ) -> None:
        self.counts = {"fetched": 0, "hits": 0, "bytes": 0}
        self._remote, self._folder, self._shards, self._size, self._stop = remote, folder, shards, size, stop
        self._leads, self._stopped = node.leads, threading.Event()
        self._turn, self._lock = threading.Lock(), threading.Lock()
        with _disk(folder, "the board"):
            self._board = Board(folder, token, node, len(shards), start)
        if not node.leads or start >= stop:
            self._threads = []
            return
        _sweep(folder)
        self._plan = chain((Need(shard, start, stop) for shard in pinned), plan)
        self._upcoming = deque(islice(self._plan, 2 * len(shards)))
        self._pending: list[Need] = []  # admitted, not yet in place
        self._last: dict[int, int] = {}  # admitted shards: the last step that needs them
        self._spare = {i for i, shard in enumerate(shards) if (folder / shard.name).is_file()}
        self._threads = [threading.Thread(target=self._work, name="fetch", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def wait(self, step: int) -> None:
        """Returns once all shards of `step` are in place. Raises `ShardError` if one of them cannot be had."""
        if (error := self.lost(step)) is not None:
            raise error

    def lost(self, step: int) -> ShardError | None:
        """`wait`, but the error is returned: asked for the step after the next, it leaves the time for a checkpoint."""
        look = time.monotonic() + 1
        while self._board.ready <= min(step, self._stop - 1):
            error = self._board.failure()
            if error is not None and error.step <= step:
                return error
            if self._stopped.wait(POLL):
                raise FetchError("data.cache was closed while a step was waited for")
            if not self._leads and time.monotonic() > look:
                look = time.monotonic() + 1
                if not self._board.leader_lives() and self._board.ready <= step < self._board.failed:
                    raise FetchError("the process that fetches the shards of this machine has ended")
        return None

    def done(self, step: int) -> None:
        """Says that this process has read its samples of all steps up to `step`."""
        self._board.has_read(step)

    @property
    def failure(self) -> ShardError | None:
        """The first shard that cannot be had: known as soon as it is given up, mostly long before it is due."""
        return self._board.failure()

    @property
    def ahead(self) -> int:
        """Steps whose shards are in place and that this machine has not read yet."""
        return self._board.ready - int(self._board.done.min())

    def close(self) -> None:
        """Ends the threads; a download under way is left."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2)
        self._board.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        """A fetching thread. Needs are admitted one after the other, in order, and fetched side by side."""
        try:
            while (need := self._next()) is not None:
                self._bring(need)
        except _Closed:
            pass
        except Exception as error:
            with self._lock:
                self._board.fail(self._board.ready, "", f"a thread that fetches shards failed: {error!r}")
            raise

    def _next(self) -> Need | None:
        """Admits the next need, once it has room; None at the end, and once nothing that follows can be of use.

        Admission is in order of first steps. So when the slowest process waits for a shard, all that is admitted is
        needed at the very step that it waits for: the smallest size that works always has the room.
        """
        with self._turn:
            if not self._upcoming or self._upcoming[0].first > self._board.failed:
                return None
            need = self._upcoming[0]
            while not self._admit(need):
                if self._stopped.wait(2 * POLL):
                    raise _Closed
            return need

    def _admit(self, need: Need) -> bool:
        """Makes room for the next need, and admits it if that could be done."""
        read = int(self._board.done.min())
        with self._lock, _alone(self._folder):
            for shard in [shard for shard, last in self._last.items() if last < read]:
                del self._last[shard]
                self._board.claims[shard] = 0
                self._spare.add(shard)
            if need.shard not in self._last and need.shard not in self._spare and not self._evict(need.shard):
                return False
            self._spare.discard(need.shard)
            self._last[need.shard] = need.last
            self._board.claims[need.shard] = 1
            self._pending.append(self._upcoming.popleft())
            self._upcoming.extend(islice(self._plan, 1))
            return True

    def _evict(self, shard: int) -> bool:
        """Removes spare shards, the one that is needed last first, until `shard` has room; False if they do not do."""
        over = sum(self._shards[s].bytes for s in (shard, *self._last, *self._spare)) - self._size
        if over <= 0:
            return True
        if over > sum(self._shards[s].bytes for s in self._spare):
            return False
        next_use = {need.shard: need.first for need in reversed(self._upcoming)}
        others = _claimed_by_others(self._folder, self._board)
        for spare in sorted(self._spare, key=lambda s: next_use.get(s, NEVER), reverse=True):
            if over > 0:
                over -= self._shards[spare].bytes
                self._spare.discard(spare)
                if spare not in others:
                    (self._folder / self._shards[spare].name).unlink(missing_ok=True)
        return True

    def _bring(self, need: Need) -> None:
        shard = self._shards[need.shard]
        try:
            with _disk(self._folder, shard.name):
                fetched = obtain(self._remote, shard, self._folder, self._stopped)
        except FetchError as error:
            how = f"mend it, or leave it out with data.exclude=[{shard.name}]"
            with self._lock:
                self._board.fail(need.first, shard.name, f"shard {shard.name} cannot be had: {error}; {how}")
            return
        with self._lock:
            self.counts["fetched" if fetched else "hits"] += 1
            self.counts["bytes"] += shard.bytes if fetched else 0
            self._pending.remove(need)
            self._board.ready = min((n.first for n in (*self._pending, *islice(self._upcoming, 1))), default=self._stop)


def _sweep(folder: Path) -> None:
    """Removes what is left of downloads whose process ended."""
    for path in folder.glob(f"*{PART}"):
        if (file := _lock(path)) is not None:
            with file:
                path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Claims are laid and shards removed by one process at a time."""
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_cache(
    remote: Remote,
    folder: Path,
    manifest: Manifest,
    order: Order,
    node: Node,
    start: int,
    stop: int,
    gb: float,
    token: str,
    pinned: Sequence[Shard] = (),
) -> Cache:
    """The cache of the training steps `start` to `stop - 1`, with `pinned` shards (of other splits) for the whole run.

    Raises `UserError` if `gb` is too small or the disk has not the room.
    """
    lanes, shards = lanes_of(node.ranks, node.world, order.lanes), manifest.shards
    first = next(i for i, shard in enumerate(shards) if shard.split == "train")
    sizes, size = [shard.bytes for shard in manifest.of_split("train")], 0
    if node.leads:
        fixed = sum(shard.bytes for shard in pinned)
        size = budget(gb, smallest_of_run(order, lanes, start, stop, sizes) + fixed, sum(sizes) + fixed, folder)
    plan = (Need(need.shard + first, need.first, need.last) for need in needs(order, lanes, start, stop))
    return Cache(remote, folder, shards, plan, size, node, start, stop, token, [shards.index(s) for s in pinned])
