"""What happens to the run of a soak. A fault is a function in `FAULTS` that returns what was seen, in words."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.run import Launch, Run, members, variable
from benchmarks.soak.wandb_server import WandbServer

PATIENCE = 60.0  # seconds that a fault which does not end a run lasts at most
NOT_WRITTEN = "could not be written by rank"


@dataclass
class Scene:
    """What faults act on: the `run` with its newest `launch`, the folder of the `shards`, a small file system for the
    checkpoints (None: there is none), W&B's `server`."""

    run: Run
    launch: Launch
    random: random.Random
    shards: Path
    disk: Path | None
    server: WandbServer


def rank_killed(scene: Scene) -> str:
    """SIGKILL to one process that trains."""
    pid = scene.random.choice(scene.launch.ranks())
    _kill(pid, signal.SIGKILL)
    scene.launch.end()
    return "all others ended"


def all_killed(scene: Scene) -> str:
    """SIGKILL to all processes, as when the power fails."""
    os.killpg(scene.launch.process.pid, signal.SIGKILL)
    scene.launch.end()
    return "all ended"


def launcher_killed(scene: Scene) -> str:
    """SIGKILL to the launcher alone: the ranks go on; a second launch is refused and names a process: it is stopped."""
    for pid in members(scene.launch.process.pid):
        if variable(pid, "RANK") is None:
            _kill(pid, signal.SIGKILL)
    second = scene.run.launch()
    second.end()
    named = re.search(r"is in use by another run \(process (\d+) on", second.text())
    if named:
        _kill(int(named[1]), signal.SIGTERM)
    scene.launch.end()
    return (
        "a second launch was refused and named the run, which SIGTERM stopped"
        if named
        else "the ranks had their last step before"
    )


def stopped(scene: Scene) -> str:
    """SIGTERM to all processes."""
    os.killpg(scene.launch.process.pid, signal.SIGTERM)
    scene.launch.end()
    return (
        "it saved" if "with a checkpoint at step" in scene.launch.text() else "the launcher killed it before it saved"
    )


def disk_full(scene: Scene) -> str:
    """No byte is free for checkpoints until one could not be written."""
    assert scene.disk is not None
    before, other = scene.launch.text().count(NOT_WRITTEN), scene.disk / "other"
    limit = time.monotonic() + PATIENCE
    with open(other, "ab", buffering=0) as file:
        while scene.launch.text().count(NOT_WRITTEN) == before and not scene.launch.ended and time.monotonic() < limit:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
            scene.launch.wait(0.02)
    other.unlink()
    told = scene.launch.text().count(NOT_WRITTEN) > before
    return "a warning, and the run went on" if told else "no checkpoint came in that time"


def shard_cut(scene: Scene) -> str:
    """A training shard loses its end, and gets it back when the run has ended and was refused.

    It is cut between two pages: of a page that is cut within, a mapping reads the rest as zeros."""
    path = scene.random.choice(sorted(scene.shards.glob("train-*.tar")))
    whole = path.with_name(f".{path.name}.whole")
    shutil.copy(path, whole)
    pages = path.stat().st_size // 4096
    os.truncate(path, 4096 * scene.random.randrange(1, pages))
    ended = scene.launch.wait(PATIENCE / 3)
    said = "the run did not read it in that time, and was killed"  # it would sooner or later
    if not ended:
        os.killpg(scene.launch.process.pid, signal.SIGKILL)
    scene.launch.end()
    if ended:
        again = scene.run.launch()
        again.end()
        named = f"{path.name} has" in again.text() and again.process.returncode != 0
        said = "the run ended, and the next start was refused" + (" by the shard's name" if named else "")
    os.replace(whole, path)
    return said


def wandb_slow(scene: Scene) -> str:
    """W&B answers late, or not at all, for a while."""
    scene.server.delay = scene.random.choice([3.0, 1000.0])
    scene.launch.wait(PATIENCE / 6)
    said = f"answers {'after 3 s' if scene.server.delay == 3 else 'did not come'}; " + (
        "the run ended" if scene.launch.ended else "the run went on"
    )
    scene.server.delay = 0.0
    return said


FAULTS: dict[str, Callable[[Scene], str]] = {
    "rank killed": rank_killed,
    "all killed": all_killed,
    "launcher killed": launcher_killed,
    "SIGTERM": stopped,
    "disk full": disk_full,
    "shard cut": shard_cut,
    "slow W&B": wandb_slow,
}


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
