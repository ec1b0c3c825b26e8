"""A line of progress: rewritten in place on a terminal, one after the other in a log."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO


class Line:
    """`show` a text; `keep` leaves the last one on the terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        if self._terminal:
            width = max(20, shutil.get_terminal_size().columns - 1)
            self._stream.write(f"\r\x1b[K{text[:width]}")
        else:
            self._stream.write(f"{text}\n")
        self._shown = True
        self._stream.flush()

    def keep(self) -> None:
        if self._terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()
        self._shown = False
