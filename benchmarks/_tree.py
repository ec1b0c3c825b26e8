"""The tree of another commit, beside this one."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from umbra.errors import UserError

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The tree of a commit, while the block runs. Raises `UserError` if the commit is not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        made = subprocess.run([*git, "add", "--detach", str(path), commit], capture_output=True, text=True, timeout=120)
        if made.returncode:
            raise UserError(f"against={commit}: git cannot check it out: {(made.stderr.splitlines() or ['?'])[-1]}")
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], capture_output=True, timeout=120)
