"""A run directory belongs to one run: no other command's folder, and no second process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trainer import heartbeat
from trainer.run.record import RECORD
from umbra.errors import UserError
from umbra.files import claim_folder, remove_partial
from umbra.lock import Held, lock

LOCK = "run.lock"
OWN = (RECORD, LOCK, "checkpoints", "metrics.jsonl", heartbeat.FOLDER, heartbeat.VERDICT)


def check(run: str | Path) -> None:
    """Raises `UserError` if `run` cannot be a folder, or holds something else than a run. Creates nothing."""
    claim_folder(run, "run", OWN)


@contextlib.contextmanager
def held(run: str | Path, holds: bool) -> Iterator[None]:
    """Keeps other starts out of the run directory; the process that `holds` does it for all processes of the run, and
    removes the half-written files that a killed one left.

    Raises `UserError` that names the other process.
    """
    with contextlib.ExitStack() as stack:
        if holds:
            try:
                stack.enter_context(lock(Path(run) / LOCK, wait=False))
            except Held as other:
                who = f" (process {other.process} on {other.host})" if other.process else ""
                raise UserError(
                    f"run={run} is in use by another run{who}: let it end, stop it (SIGTERM: it saves a checkpoint), "
                    "or choose another run=DIR"
                ) from other
            for folder in (Path(run), *filter(Path.is_dir, Path(run).iterdir())):
                remove_partial(folder)
        yield
