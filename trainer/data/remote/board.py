"""Shared integers by which the processes of a machine coordinate the shards that one of them fetches."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data.remote.fetch import FetchError
from trainer.data.remote.store import POLL
from umbra.errors import UserError

BOARD = "board-"
WORDS = 128  # integers that take the space of a text of 1 KiB
NEVER = np.iinfo(np.int64).max


class ShardError(UserError):
    """A shard that is not available. `shard` is its name; `step` the first step that needs it and has not begun."""

    def __init__(self, message: str, shard: str, step: int) -> None:
        super().__init__(message)
        self.shard, self.step = shard, step


@dataclass(frozen=True)
class Node:
    """This process, `rank`, among the `ranks` on its machine, of `world` in all."""

    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == self.ranks[0]


class Board:
    """Shared int64 integers of the processes of a machine, each with one writer.

    `ready`: the shards of all steps before it are in place. `failed`: the first step whose shards cannot be fetched,
    with a message (the file has its full size from the start, so a full disk does not affect it). `done`: one step per
    process, which has read all steps before it. `claims`: 1 for each shard that must not be removed. The leader holds a
    lock on the file while it is alive.
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
        """Leader only. The failure at the earliest step is kept."""
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
        """Called by the other processes."""
        return _held(self._file)

    def close(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing is not enough: the mapping has a copy of the descriptor
        self._file.close()


def _wait_for(path: Path, patience: float = 120.0) -> BinaryIO:
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            raise FetchError(f"data.cache: the process that fetches the shards of this machine did not create {path}")
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


def claimed_by_others(folder: Path, own: Board) -> set[int]:
    """The shards claimed on the boards of other live runs; removes boards whose leader has ended."""
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
