"""Downloads files with checks and retries: HTTP(S) with Python's own client, all else by `webdataset.gopen`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import random
import select
import shlex
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from umbra.errors import UserError

CHUNK = 1 << 20
TRY_AGAIN = (408, 425, 429)  # HTTP client errors that are worth a retry


class FetchError(UserError):
    """A file that cannot be fetched; the message names it without the query and the credentials of its URL."""


class Closed(Exception):
    """The run is ending: a download in progress is abandoned."""


class _Retry(Exception):
    """A failure that a retry may not have; with `from_start` the bytes so far are useless."""

    def __init__(self, why: str, from_start: bool = False) -> None:
        super().__init__(why)
        self.from_start = from_start


@dataclass(frozen=True)
class Limits:
    """`stall`: seconds without data that end an attempt; `attempts`: consecutive ones without progress; `pause` to
    `longest`: seconds between attempts, doubling, with jitter. Time limit of a file: `total` seconds and its size at
    `slowest` bytes/s, at most `most` seconds, which is below the ten-minute timeout of the process group.
    """

    stall: float = 30.0
    attempts: int = 6
    pause: float = 1.0
    longest: float = 30.0
    total: float = 240.0
    slowest: float = 1e6
    most: float = 540.0

    def time_of(self, size: int) -> float:
        """Time limit in seconds of a file of so many bytes."""
        return min(self.total + size / self.slowest, self.most)


def is_remote(path: str) -> bool:
    """True for a URL (`http://`, `https://`, `s3://`, `gs://`, ...) and for `pipe:COMMAND`."""
    return path.startswith("pipe:") or "://" in path


def without_secrets(path: str) -> str:
    """A `data.path` without the name, password and query of its URL; a folder or a command as it is."""
    if "://" not in path or path.startswith("pipe:"):
        return path
    parts = urlsplit(path)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@dataclass(frozen=True)
class Remote:
    """The folder of a data set behind a URL. A file's name replaces `{}` in the URL, or is appended to its path.

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
            raise UserError(
                f"data.path={self.url.partition('?')[0]} is not the URL of a folder, such as http://HOST/FOLDER"
            )

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
        """The bytes of a file from `offset` on, or from 0 if that is not supported -> (actual offset, chunks)."""
        parts = urlsplit(self.where(name))
        if parts.scheme in ("http", "https"):
            return _open_http(parts, offset, self.limits.stall)
        return 0, _through_gopen(self.where(name), self.limits.stall)


class Download:
    """Downloads a remote file to `file`; checks its size and hash if they are given."""

    def __init__(self, remote: Remote, name: str, file: BinaryIO, size: int | None = None, sha256: str = "") -> None:
        self.remote, self.name, self.file, self.size, self.sha256 = remote, name, file, size, sha256
        self._reset()

    def run(self, stopped: threading.Event) -> None:
        """Fetches the file: an interrupted transfer is resumed, other failures are retried within `remote.limits`.

        Raises `FetchError`.
        """
        limits, best, failures, tries = self.remote.limits, 0, 0, 0
        self._end = time.monotonic() + limits.time_of(self.size or 0)
        while True:
            tries += 1
            try:
                return self._try(stopped)
            except FetchError as error:
                raise FetchError(f"{self.remote.shown(self.name)}: {error}") from None
            except _Retry as error:
                failures = 0 if self.file.tell() > best and not error.from_start else failures + 1
                best = max(best, self.file.tell())
                if error.from_start or self.size is None:
                    self._reset()
                if failures >= limits.attempts or time.monotonic() > self._end:
                    raise FetchError(f"{self.remote.shown(self.name)}: {error} ({tries} tries)") from None
            pause = min(limits.longest, limits.pause * 2 ** max(failures - 1, 0))
            if stopped.wait(pause * random.uniform(0.5, 1)):
                raise Closed

    def _try(self, stopped: threading.Event) -> None:
        begins, chunks = self.remote.open(self.name, self.file.tell())
        with contextlib.closing(chunks):
            if begins != self.file.tell():
                self._reset()
            for chunk in chunks:
                if stopped.is_set():
                    raise Closed
                self.file.write(chunk)
                self._digest.update(chunk)
                if self.size is not None and self.file.tell() > self.size:
                    raise _Retry(f"longer than the {self.size} bytes of the manifest", from_start=True)
                if time.monotonic() > self._end:
                    raise _Retry(f"too slow: {self.file.tell()} bytes within the time limit")
        if self.size is not None and self.file.tell() < self.size:
            raise _Retry(f"ended after {self.file.tell()} of {self.size} bytes")
        if self.sha256 and self._digest.hexdigest() != self.sha256:
            raise _Retry("sha256 differs from the manifest", from_start=True)

    def _reset(self) -> None:
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
        raise _Retry("the server sent another range than requested", from_start=True)
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
        raise _Retry(f"the connection ended {left} bytes early")


@contextlib.contextmanager
def _http_errors() -> Iterator[None]:
    """Turns exceptions of the client into `FetchError` if a retry is pointless, else into `_Retry`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if 400 <= error.code < 500 and error.code not in (*TRY_AGAIN, 416):
            raise FetchError(f"HTTP {error.code} {error.reason}") from None
        raise _Retry(f"HTTP {error.code} {error.reason}", from_start=error.code == 416) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise FetchError(f"not a valid URL: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FetchError(f"certificate not accepted: {reason.verify_message}") from None
        if isinstance(reason, TimeoutError):
            raise _Retry("the server stalled") from None
        raise _Retry(f"{type(reason).__name__} {reason}".strip()) from None


def _through_gopen(url: str, stall: float) -> Generator[bytes, None, None]:
    from webdataset.gopen import Pipe, gopen, gopen_schemes

    scheme = url.partition(":")[0]
    if scheme == "s3" and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    elif scheme not in gopen_schemes and scheme != "file":
        known = ", ".join(sorted({*gopen_schemes, "s3", "file"} - {"__default__"}))
        raise FetchError(f"webdataset cannot open {scheme}: URLs, only {known}")
    try:
        stream = gopen(url, "rb")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise FetchError(f"{error.filename} does not exist on this machine") from None
        raise _Retry(f"{type(error).__name__} {error.strerror}") from None
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
                raise _Retry("the command stalled")
            chunk = os.read(process.stdout.fileno(), CHUNK)
            if not chunk:
                break
            yield chunk
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stall)
        if process.returncode == 127:
            raise FetchError("the command is not installed")
        if process.returncode != 0:
            raise _Retry(f"the command ended with exit code {process.returncode}")
    finally:
        process.kill()
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[attr-defined]
