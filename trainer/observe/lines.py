"""A file of lines that a full disk does not tear."""

from __future__ import annotations

from pathlib import Path


class Lines:
    """Appends lines to a file, each on disk at once. What cannot be written now is kept, and written as soon as that
    is possible."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._left = b""

    def add(self, line: str) -> str:
        """Why not all lines are written; empty if they are."""
        self._left += f"{line}\n".encode()
        return self.flush()

    def flush(self) -> str:
        """As `add`, without another line."""
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
        except OSError as error:
            return error.strerror or type(error).__name__
        return ""

    def close(self) -> str:
        """As `flush`, for the last time."""
        why = self.flush()
        self._file.close()
        return why
