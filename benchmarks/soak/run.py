"""The run of a soak: its launches, its processes, and what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.observe.metrics import METRICS, read_metrics

LONG = 600.0  # seconds that a launch may take for its first step, or to end
MARK = "UMBRA_SOAK"  # the variable by which processes of a soak are known again


@dataclass(frozen=True)
class Use:
    """What the ranks use, summed, at a time (seconds since the start of the launch): MiB of memory that is theirs alone
    (`RssAnon`) and of all memory (`VmRSS`, with mapped shards), open files, threads."""

    at: float
    own: float
    rss: float
    files: int
    threads: int


@dataclass
class Launch:
    """One start of the command, by the real launcher; its output is in `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    since: float = field(default_factory=time.monotonic)
    uses: list[Use] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """The processes that train, without those that they started."""
        found = [pid for pid in members(self.process.pid) if variable(pid, "RANK") is not None]
        return [pid for pid in found if parent(pid) not in (0, *found)]  # 0: it has ended meanwhile

    def sample(self, processes: int) -> None:
        """Keeps what the ranks use, if all of them are there."""
        found = [use for pid in self.ranks() if (use := _use_of(pid))]
        if len(found) == processes:
            sums = [sum(values) for values in zip(*found)]
            self.uses.append(Use(time.monotonic() - self.since, sums[0], sums[1], int(sums[2]), int(sums[3])))

    def wait(self, seconds: float) -> bool:
        """Whether it ends by itself within some seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.ended

    def end(self) -> None:
        """Waits for the end of all its processes; kills those that are left, which is an error."""
        limit = time.monotonic() + LONG
        while not self.ended or members(self.process.pid):
            if time.monotonic() > limit:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise TimeoutError(f"a launch did not end within {LONG:.0f} s:\n{self.text()[-2000:]}")
            self.wait(0.2)


class Run:
    """A run directory and the command that starts it or goes on with it."""

    def __init__(self, folder: Path, words: list[str], processes: int, variables: dict[str, str], logs: Path) -> None:
        self.folder, self._words, self._processes, self._logs = folder, words, processes, logs
        self._variables = variables
        self.launches: list[Launch] = []

    def launch(self) -> Launch:
        command = ["deepspeed", "--num_gpus", str(self._processes), "--master_port", str(free_port())]
        command += ["trainer/pretrain.py", *self._words, f"run={self.folder}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **self._variables}
        log = self._logs / f"{self.folder.name}-{len(self.launches) + 1:03d}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.launches.append(Launch(process, log))
        return self.launches[-1]

    def close(self) -> None:
        """Kills what still runs."""
        for launch in self.launches:
            if members(launch.process.pid):
                os.killpg(launch.process.pid, signal.SIGKILL)
            launch.process.wait()

    def step(self) -> int:
        """The last step that was logged."""
        rows = read_metrics(self.folder / METRICS)
        return int(rows[-1]["step"]) if rows else 0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def members(group: int) -> list[int]:
    """The processes of a process group; those that have ended and are not yet waited for do not count."""
    return [pid for pid, state, its_group in _processes() if its_group == group and state != "Z"]


def left_over(token: str) -> list[str]:
    """The command lines of all processes that were started by a soak and have not ended."""
    left = [
        pid for pid, state, _ in _processes() if state != "Z" and variable(pid, MARK) == token and pid != os.getpid()
    ]
    return [_text(pid, "cmdline").replace("\0", " ").strip() for pid in left]


def parent(pid: int) -> int:
    """0 if there is no such process."""
    return int((_text(pid, "stat").rpartition(")")[2].split() or ["", "0"])[1])


def variable(pid: int, name: str) -> str | None:
    """A variable of the environment that a process was started with."""
    words = dict(word.partition("=")[::2] for word in _text(pid, "environ").split("\0"))
    return words.get(name)


def _processes() -> Iterator[tuple[int, str, int]]:
    """(process, state, process group)"""
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _text(int(name), "stat").rpartition(")")[2].split()
        if len(fields) > 2:
            yield int(name), fields[0], int(fields[2])


def _use_of(pid: int) -> tuple[float, float, int, int] | None:
    fields = dict(line.partition(":")[::2] for line in _text(pid, "status").splitlines())
    if "RssAnon" not in fields:
        return None
    with contextlib.suppress(OSError):
        own, rss = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))
        return own, rss, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])
    return None


def _text(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""
