"""A shell with job control in a pseudo-terminal, as a person has it."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import time
from collections.abc import Sequence

from tests.support.launch import ROOT, environment


class Shell:
    """`said` is all that the terminal has shown; the shell is the leader of its session."""

    def __init__(self) -> None:
        self.said = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**environment(), "PS1": "$ ", "TERM": "dumb"})

    def run(self, words: Sequence[str], after: str = "") -> None:
        self.type(f"{shlex.join(words)}{after}; echo code=$?\n")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, pattern: str, seconds: float = 150) -> str:
        """Waits for a line that matches; returns what was said since the last call."""
        before, end = len(self.said), time.monotonic() + seconds
        while not re.search(pattern, self.said[before:]):
            assert time.monotonic() < end, f"no {pattern} within {seconds} s:\n{self.said[-4000:]}"
            if select.select([self._terminal], [], [], 0.2)[0]:
                self.said += os.read(self._terminal, 1 << 16).decode(errors="replace")
        return self.said[before:]

    def close(self) -> None:
        """Closes the terminal, as a lost connection does."""
        os.close(self._terminal)
        os.waitpid(self.pid, 0)
