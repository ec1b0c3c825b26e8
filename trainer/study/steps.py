"""Runs the commands of a study, each with a log and a time limit, and records them with their durations."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from umbra.errors import UserError
from umbra.lock import lock

STEPS = "steps.jsonl"


class Note(TypedDict):
    """A line of steps.jsonl: a finished step as `KIND/ROTATION[/METHOD...]`, its command and wall time."""

    step: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Steps:
    """Runs commands, each with a log and a limit of `seconds`; records them with their durations in steps.jsonl.

    Several processes may write to the same one.
    """

    output: Path
    seconds: float

    def run(self, name: str, words: Sequence[str | Path], done: Callable[[], bool]) -> None:
        """Runs a command unless it is done. Raises `UserError` with the end of its log if it fails or times out."""
        if done():
            return
        command = [str(word) for word in words]
        log = self.output / "logs" / f"{name.replace('/', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        print(f"[{name}] {shown(command)}\n[{name}] log: {log}", flush=True)
        began = time.monotonic()
        problem = run_limited(command, log, self.seconds) or ("" if done() else "ended without its result")
        if problem:
            raise UserError(f"step {name} {problem}; log: {log}; it says: {telling_line(log)}")
        self.note(name, command, time.monotonic() - began)

    def note(self, name: str, words: Sequence[str | Path], seconds: float) -> None:
        path = self.output / STEPS
        line: Note = {"step": name, "command": shown(words), "seconds": round(seconds, 2)}
        with lock(path.with_suffix(".lock")), open(path, "a+b") as file:
            size = file.seek(0, os.SEEK_END)
            cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" * cut + json.dumps(line).encode() + b"\n")
        print(f"[{name}] {seconds:.1f} s", flush=True)


def shown(words: Sequence[str | Path]) -> str:
    """A command as typed in a shell, with programs by name."""
    first = "python" if str(words[0]) == sys.executable else Path(words[0]).name
    return shlex.join([first, *(str(word) for word in words[1:])])


def telling_line(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"error: |[\w.]+(Error|Exception)\b", line)]
    return (named or lines or ["(empty)"])[-1][:300]


def run_limited(words: Sequence[str], log: Path, seconds: float) -> str:
    """Runs a command in its own process group; returns what went wrong, or an empty string.

    No process of the group outlives the call, whether the command ends, times out or is interrupted.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
            return f"ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            return f"took longer than {seconds / 60:.3g} minutes (key 'minutes')"
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes], patience: float = 60.0) -> None:
    """Ends the rest of the command's process group: SIGTERM first, SIGKILL after `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
