"""The processes of this machine, and which of them train."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def in_group(group: int) -> list[int]:
    """The processes of a process group, such as a launcher's."""
    return [pid for pid in process_ids() if _stat(pid)[2:3] == [str(group)]]


def command_of(pid: int) -> str:
    return _text(pid, "cmdline").replace("\0", " ")


def environment_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with."""
    words = (word.partition("=") for word in _text(pid, "environ").split("\0"))
    return {name: value for name, _, value in words}


def rank_processes(among: Iterable[int]) -> dict[int, int]:
    """The process of each rank `among` some, without those that a rank started itself, such as `git`: these inherit its
    environment, and its command line until they run their own."""
    ranks = {pid: int(rank) for pid in among if (rank := environment_of(pid).get("RANK", "")).isdigit()}
    parents = {pid: int(fields[1]) for pid in ranks if (fields := _stat(pid))}  # one that has ended meanwhile has none
    own = {pid: ranks[pid] for pid, parent in parents.items() if parent not in ranks}
    assert len(set(own.values())) == len(own), f"several processes of a rank: {own}"
    return {rank: pid for pid, rank in own.items()}


def _stat(pid: int) -> list[str]:
    """Of /proc/PID/stat: state, parent, process group, ..."""
    return _text(pid, "stat").rpartition(")")[2].split()


def _text(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    return ""
