"""What each process of a run is doing, shown to the others in a small file of its own in `RUN/heartbeat/`.

The main thread says what it begins (`doing`); `trainer.watchdog` writes the files, and reads those of the others when
its process gets no further.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER, VERDICT = "heartbeat", "hang.txt"
SHOWN = 4  # ranks in a line
SIZE = 512  # bytes of a file, always the same: it is overwritten in place, also on a full disk


@dataclass(frozen=True)
class Beat:
    """What a process does. `count` is the number of things it began: the same on all ranks at the same point of a run.

    `step` counts from 1 (0: before the first); `waits`: it waits for the others in a collective; `patient`: this may
    take the longer limit.
    """

    rank: int = 0
    host: str = ""
    doing: str = "start-up"
    step: int = 0
    count: int = 0
    waits: bool = False
    patient: bool = True

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> str:
        return f"{self.doing} of step {self.step}" if self.step else self.doing


_now, _settled = Beat(), False
wake = threading.Event()  # set when the others are to be told now


def begin(rank: int) -> None:
    """This process, `rank` of its run, starts up."""
    global _now, _settled
    _now, _settled = Beat(rank, os.uname().nodename), False


def now() -> Beat:
    """What this process is doing."""
    return _now


def doing(what: str, step: int | None = None, patient: bool = False, at_once: bool = False) -> None:
    """Says what this process begins now, the same on every rank; `patient`: it may take the longer limit; `at_once`:
    the others are told now, not with the next beat."""
    global _now
    step = _now.step if step is None else step
    _now = dataclasses.replace(
        _now, doing=what, step=step, count=_now.count + 1, waits=False, patient=patient or not _settled
    )
    if at_once:
        wake.set()


def settled() -> None:
    """The first step is done: from now on, only what says so is patient."""
    global _settled
    _settled = True


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Marks a collective, in which a process waits for the others."""
    global _now
    _now = dataclasses.replace(_now, waits=True)
    try:
        yield
    finally:
        _now = dataclasses.replace(_now, waits=False)


@dataclass(frozen=True)
class Seen:
    """What is known of the other processes: the last beat of each (None: none yet), and which gave no sign of life."""

    beats: Mapping[int, Beat | None]
    silent: frozenset[int] = frozenset()

    def hanging(self) -> list[int]:
        """The ranks for which the others wait: those without a sign of life, else those that are behind; of these,
        those that do not wait in a collective themselves."""
        if self.silent:
            return sorted(self.silent)
        known = {rank: beat for rank, beat in self.beats.items() if beat is not None}
        least = min(beat.count for beat in known.values())
        behind = {rank: beat for rank, beat in known.items() if beat.count == least}
        return sorted([rank for rank, beat in behind.items() if not beat.waits] or behind)

    @property
    def patient(self) -> bool:
        """Whether a living process does something that may take long."""
        return any(beat is not None and beat.patient for rank, beat in self.beats.items() if rank not in self.silent)

    def said(self, rank: int) -> str:
        """What is known of one rank, in words."""
        beat = self.beats.get(rank)
        if beat is None:
            return f"rank {rank} has not started"
        if rank in self.silent:
            return f"{beat} gives no sign of life (last seen in {beat.place})"
        return f"{beat} hangs in {beat.place}"

    def line(self, minutes: float) -> str:
        """The line to end with."""
        ranks = self.hanging()
        if len(ranks) == len(self.beats) > 1:
            beat = self.beats[ranks[0]]
            who = f"all {len(ranks)} processes hang in {beat.place if beat else 'start-up'}: network or file system?"
        else:
            who = "; ".join(map(self.said, ranks[:SHOWN]))
            who += f"; and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
        return (
            f"error: the run stood still for {minutes:.3g} minutes: {who} ({VERDICT} in the run directory has all "
            "ranks). The same command resumes from the newest checkpoint"
        )

    def table(self) -> str:
        rows = []
        for rank, beat in self.beats.items():
            life = "no sign of life" if rank in self.silent else "waits" if beat and beat.waits else ""
            rows.append(f"rank {rank:<5d} {beat.host if beat else '?':<24s} {beat.place if beat else '':<32s} {life}")
        return "\n".join(row.rstrip() for row in rows) + "\n"


def file_of(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank}"


def write(run: Path, number: int) -> None:
    """Writes what this process is doing; with another `number` each time it is a sign of life. Raises `OSError`."""
    path = file_of(run, _now.rank)
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        content = json.dumps({"number": number, **dataclasses.asdict(_now)})
        os.write(handle, content.encode()[:SIZE].ljust(SIZE))
    finally:
        os.close(handle)


def parse(data: bytes) -> Beat | None:
    """The content of a process's file; None if it is not whole."""
    try:
        values = json.loads(data)
        del values["number"]
        return Beat(**values)
    except (ValueError, KeyError, TypeError):
        return None


def clear(run: Path) -> None:
    """Removes what an earlier start left."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):
        (run / VERDICT).unlink()
