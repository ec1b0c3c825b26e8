"""The end of a run that stands still: every process ends, and one line says who hangs.

Two threads of `Watch` do what a main thread that hangs in a collective cannot: one keeps this process's file of
`trainer.heartbeat` up to date, and reads those of the others when this process gets no further; the other ends the
process when the time is over. Times are those of this process's own clock, and the time that it was itself stopped
(Ctrl-Z) does not count.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from trainer import heartbeat
from trainer.heartbeat import FOLDER, VERDICT, Beat, Seen

HUNG = 75  # exit code: EX_TEMPFAIL of sysexits.h, the same command may succeed
GRACE = 5.0  # seconds that the others are given to end


class Watch:
    """Watches this process, `rank` of `size`, until `close`.

    If it gets no further for `limit_s` seconds (`patient_s` while it or another does what may take long), every process
    ends with exit code `HUNG`: the first to see it prints one line and leaves the verdict `RUN/hang.txt`, by which
    the others know; those of this machine that were stopped are continued, and killed if they do not end.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        size: int,
        limit_s: float,
        patient_s: float,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        heartbeat.begin(rank)
        self._run, self._rank, self._size, self._failed = run, rank, size, failed
        self._limits = limit_s, max(limit_s, patient_s)
        self._period = min(limit_s / 20, 30.0)
        self._closed, self._condemned, self._told = threading.Event(), threading.Event(), threading.Event()
        self._ending = threading.Event()
        self._count, self._clock, self._since = -1, 0.0, 0.0
        self._others: dict[int, tuple[bytes, Beat | None, float]] = {}  # content, last beat, when it changed
        if rank == 0:
            heartbeat.clear(run)
        self._old = _identity(run / VERDICT)
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True) for work in (self._show, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closed.set()
        heartbeat.wake.set()
        self._threads[0].join(timeout=1)
        with contextlib.suppress(OSError):
            heartbeat.file_of(self._run, self._rank).unlink()
            (self._run / FOLDER).rmdir()  # succeeds for the last one

    def give_way(self) -> None:
        """After an error of the main thread: does not return if it is the result of a hang that ends the process."""
        if self._ending.is_set() or _identity(self._run / VERDICT) not in (None, self._old):
            time.sleep(3 * GRACE)
            os._exit(HUNG)

    def _show(self) -> None:
        """Keeps the file of this process up to date; all that may hang with the file system is done here."""
        number = 0
        while True:
            number += 1
            with contextlib.suppress(OSError):
                heartbeat.write(self._run, number)
            if self._clock - self._since > self._limits[0] / 2:
                self._look()
            if _identity(self._run / VERDICT) not in (None, self._old):
                self._condemned.set()
            heartbeat.wake.wait(self._period)
            heartbeat.wake.clear()
            if self._closed.is_set():
                return

    def _look(self) -> None:
        """Reads the files of the others. One that goes on is no sign of a hang: the time begins anew."""
        for rank in set(range(self._size)) - {self._rank}:
            data = b""
            with contextlib.suppress(OSError):
                data = heartbeat.file_of(self._run, rank).read_bytes()
            known = self._others.get(rank)
            if known is None or data != known[0]:
                beat, before = heartbeat.parse(data), known and known[1]
                if before and beat and beat.count != before.count:
                    self._since = self._clock
                self._others[rank] = data, beat or before, self._clock

    def _judge(self) -> None:
        """Counts how long this process gets no further."""
        before = time.monotonic()
        while not self._closed.wait(self._period):
            now = time.monotonic()
            self._clock += min(now - before, 2 * self._period)
            before = now
            doing = heartbeat.now()
            if doing.count != self._count:
                self._count, self._since = doing.count, self._clock
                self._others = {}
            seen = self._seen()
            limit = self._limits[doing.patient or seen.patient]
            if self._condemned.is_set() or self._clock - self._since > limit:
                self._end(seen, limit)

    def _seen(self) -> Seen:
        others = {rank: self._others.get(rank, (b"", None, self._clock)) for rank in range(self._size)}
        silent = (r for r, (_, _, at) in others.items() if r != self._rank and self._clock - at > self._limits[0] / 4)
        beats = {rank: beat for rank, (_, beat, _) in others.items()} | {self._rank: heartbeat.now()}
        return Seen(beats, frozenset(silent))

    def _end(self, seen: Seen, limit: float) -> None:
        """Ends this process, and says why if no other has. Files are left to another thread, which may hang."""
        self._ending.set()
        line = seen.line(limit / 60)
        work = threading.Thread(target=self._sentence, args=(seen, line), daemon=True)
        work.start()
        work.join(2 * GRACE)
        if not self._told.is_set():
            _tell(line)
        os._exit(HUNG)

    def _sentence(self, seen: Seen, line: str) -> None:
        with contextlib.suppress(OSError), open(self._run / FOLDER / f"rank-{self._rank}.trace", "w") as file:
            faulthandler.dump_traceback(file)
        first = not self._condemned.is_set() and self._condemn(f"{line}\n\n{seen.table()}")
        self._told.set()
        if first:
            _tell(line)
            self._failed()
            _end_stopped(seen.silent)

    def _condemn(self, text: str) -> bool:
        """Leaves the verdict; false if another process has."""
        verdict = self._run / VERDICT
        try:
            if self._old is not None and _identity(verdict) == self._old:
                verdict.unlink()
            with open(verdict, "x") as file:
                file.write(text)
        except FileExistsError:
            return False
        except OSError:
            pass
        return True


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _end_stopped(ranks: Collection[int]) -> None:
    """Lets processes of this machine and launch go on, so that they see the verdict; kills them if they do not."""
    processes = siblings(ranks)
    for number in (signal.SIGCONT, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(OSError):
                os.kill(process, number)
        limit = time.monotonic() + GRACE
        while number == signal.SIGCONT and any(map(_lives, processes)) and time.monotonic() < limit:
            time.sleep(0.05)


def _lives(process: int) -> bool:
    fields = _stat(process)
    return bool(fields) and fields[0] != "Z"


def _stat(process: int | str) -> list[str]:
    """The fields of /proc/PROCESS/stat from the state on; none if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return []


def siblings(ranks: Collection[int]) -> list[int]:
    """The processes of this machine that the same launcher started for the same launch as these ranks."""
    mine, found = _variables("self"), []
    if "MASTER_PORT" not in mine:
        return []
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _stat(name)
        if len(fields) > 1 and int(fields[1]) == os.getppid() and int(name) != os.getpid():
            theirs = _variables(name)
            same = all(theirs.get(key) == mine.get(key) for key in ("MASTER_ADDR", "MASTER_PORT"))
            if same and theirs.get("RANK", "") in map(str, ranks):
                found.append(int(name))
    return found


def _variables(process: str) -> dict[str, str]:
    """The environment that a process was started with."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(word.partition("=")[::2] for word in words)  # type: ignore[misc]
    return {}
