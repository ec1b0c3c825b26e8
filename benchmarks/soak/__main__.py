"""Does a run come to the same end through all that can happen to it? `python -m benchmarks.soak [minutes=60]`.

Pre-trains a narrow encoder on synthetic ECGs, on two processes under the real launcher: first undisturbed, then again
for `minutes` under faults drawn from `seed` (`faults.py`), each followed by the same command. Then it is judged: the
records of the samples (`trainer.data.audit`), the bytes of the last checkpoint against those of the undisturbed run,
memory, open files and threads of the undisturbed run from its tenth minute to its end, and what files and processes are
left. Exit code 1 if anything is wrong; the report is written in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.soak.audit import BY_ITSELF, Outcome, audit, markdown
from benchmarks.soak.faults import FAULTS, Scene
from benchmarks.soak.run import LONG, MARK, Launch, Run
from benchmarks.soak.wandb_server import WandbServer
from umbra.config import check_fields, command, load, setting
from umbra.errors import UserError
from umbra.files import make_folder, write_text

PROCESSES = 2
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
SMALL = [
    "configs/pretrain/same_window.yaml", "batch.global=16", "encoder.args.width=8", "encoder.args.embedding=16",
    "projector.hidden=16", "projector.out=8", "masker.width=8", "log.every=5", "log.figure_every=0",
    "log.heldout_every=50", "data.audit=true", "data.block_shards=2", "wandb.mode=online",
]  # fmt: skip


@dataclass
class SoakConfig:
    """A soak: about `every` seconds of training from one fault to the next, and as many steps as there is room
    for, by the speed of a short run and the time that it takes to start. `logs`: keeps the output of all launches.
    """

    minutes: float = setting(60.0, "> 0")
    seed: int = setting(0, ">= 0")
    every: float = setting(45.0, "> 0")
    mark: float = setting(10.0, "> 0")
    """Minute of the undisturbed run from which its memory may not grow (a third of it, if it is not twice as long)."""
    zero: int = setting(1, choices=(0, 1, 2, 3))
    patients: int = setting(160, ">= 20")
    report: str = "docs/results/soak.md"
    logs: str = ""
    inside: bool = False
    """Whether it is in a mount namespace of its own, where a disk can be full: it starts itself there if it can."""


def main(words: list[str]) -> int:
    config = load(SoakConfig, None, words)
    check_fields(config)
    if not config.inside and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0:
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, "-m", "benchmarks.soak", *words, "inside=true"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its runs end with it
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, WandbServer().serving() as server:
        outcome = soak(config, Path(folder), server)
    shown = f"minutes={config.minutes:g} every={config.every:g} seed={config.seed}"
    write_text(Path(config.report), markdown(shown, outcome))
    print(f"# {config.report}")
    wrong = [check.name for check in outcome.checks if not check.right]
    print(json.dumps({"right": not wrong, "wrong": wrong, "steps": outcome.steps, "faults": len(outcome.faults)}))
    return 1 if wrong else 0


def soak(config: SoakConfig, folder: Path, server: WandbServer) -> Outcome:
    token = secrets.token_hex(8)
    logs = make_folder(config.logs or folder / "logs", "logs")
    shards, variables = make_shards(config, folder), {**server.variables, MARK: token}
    words = [*SMALL, f"data.path={shards}", f"zero={config.zero}"]
    with contextlib.closing(Run(folder / "first", [*words, "steps=100"], PROCESSES, variables, logs)) as first:
        start, seconds = calibrate(first)
    steps = max(60, round(60 * config.minutes * config.every / (config.every + start) / seconds))
    words += [f"steps={steps}", f"checkpoint.every={max(5, round(min(4, config.every / 3) / seconds))}"]
    print(f"# {start:.0f} s to start, {seconds:.3f} s a step: {steps} steps", flush=True)
    alone, disturbed = (Run(folder / name, words, PROCESSES, variables, logs) for name in ("undisturbed", "disturbed"))
    with contextlib.closing(alone):
        undisturbed(alone)
    with small_disk(config, disturbed) as disk, contextlib.closing(disturbed):
        began = time.monotonic()
        scene = Scene(disturbed, disturbed.launch(), Random(config.seed), shards, disk, server)
        faults = disturb(scene, config)
        minutes = (time.monotonic() - began) / 60
        return audit(alone, disturbed, steps, config.mark, minutes, faults, token)


def undisturbed(run: Run) -> None:
    launch = run.launch()
    trains(launch)
    watch(launch, float("inf"))
    launch.end()
    if launch.process.returncode:
        raise UserError(f"the undisturbed run failed: {launch.text()[-1500:]}")
    print(f"# undisturbed: {(time.monotonic() - launch.since) / 60:.1f} minutes", flush=True)


def make_shards(config: SoakConfig, folder: Path) -> Path:
    """Synthetic ECGs of 10 s at 100 Hz, in shards of at most 20."""
    recordings, shards = folder / "recordings", folder / "shards"
    build = ["configs/shard/wfdb.yaml", f"input={recordings}", f"output={shards}", "samples_per_shard=20"]
    for words in (
        ["synth", f"output={recordings}", f"patients={config.patients}", f"seed={config.seed}"],
        ["build", *build],
    ):
        done = subprocess.run([sys.executable, "-m", "sharding", *words], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"sharding {words[0]} failed: {done.stderr[-500:]}")
    return shards


def calibrate(run: Run) -> tuple[float, float]:
    """Seconds of a start, and of a step: by a short run, without its first steps."""
    launch, seen = run.launch(), dict[int, float]()
    limit = time.monotonic() + LONG
    while not launch.wait(0.05) and time.monotonic() < limit:
        seen.setdefault(run.step(), time.monotonic())
    launch.end()
    (first, began), *_, (last, ended) = ((step, at) for step, at in sorted(seen.items()) if step >= 20)
    seconds = (ended - began) / (last - first)
    return began - launch.since - first * seconds, seconds


@contextlib.contextmanager
def small_disk(config: SoakConfig, run: Run) -> Iterator[Path | None]:
    """A file system of 64 MB for the checkpoints of a run; None where it cannot be had."""
    if not config.inside:
        yield None
        return
    folder = run.folder / "checkpoints"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def watch(launch: Launch, seconds: float) -> None:
    """Samples what a launch uses, each second, until it ends or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not launch.wait(min(1.0, end - time.monotonic())):
        launch.sample(PROCESSES)


def disturb(scene: Scene, config: SoakConfig) -> list[tuple[str, int, str]]:
    """(fault, step, what was seen) until the run has all its steps; faults only while `minutes` last."""
    end, faults, bag = time.monotonic() + 60 * config.minutes, list[tuple[str, int, str]](), list[str]()
    kinds = [name for name in FAULTS if name != "disk full" or scene.disk is not None]
    while True:
        trains(scene.launch)
        watch(scene.launch, scene.random.uniform(0.5, 1.5) * config.every if time.monotonic() < end else LONG)
        if not scene.launch.ended and time.monotonic() < end:
            bag = bag or scene.random.sample(kinds, len(kinds))
            name, step = bag.pop(), scene.run.step()
            faults.append((name, step, FAULTS[name](scene)))
            print(f"# step {step}: {name}: {faults[-1][2]}", flush=True)
        elif scene.launch.ended:
            scene.launch.end()
            done = scene.launch.process.returncode == 0 and finished(scene.run)
            if not done:
                said = (scene.launch.text().strip().splitlines() or ["nothing"])[-1]
                faults.append((BY_ITSELF, scene.run.step(), said[-200:]))
            if done or [name for name, *_ in faults].count(BY_ITSELF) == 3:
                return faults
        if scene.launch.ended:
            scene.launch = scene.run.launch()


def trains(launch: Launch) -> None:
    """Waits until a launch has logged a step, or has ended."""
    limit = time.monotonic() + LONG
    while "\nstep " not in launch.text() and not launch.wait(0.2):
        if time.monotonic() > limit:
            raise TimeoutError(f"no step within {LONG:.0f} s:\n{launch.text()[-2000:]}")


def finished(run: Run) -> bool:
    return bool(json.loads((run.folder / "run.json").read_text())["status"] == "finished")


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.soak"
    command(main)
