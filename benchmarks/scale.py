"""Do plans hold? `python -m benchmarks.scale [key=value]`: memory, traffic and speed of real runs of 1, 2 and 4
processes, against what `trainer.plan` says of them from one process.

One process alone plays steps on fixed ECGs (the single-device figure of each ZeRO stage), then real runs train, with
as many ECGs a process: the ratio of measured to planned. Memory is that of weights, optimiser and DeepSpeed's buffers
between two steps (live tensors), traffic what the processes hand to torch.distributed, as rings, and in how many calls.
The time of a collective, a large one and a small one, is measured in the same job. Machines change their speed, from
one job to the next by a factor of two: so each step is timed against a fixed piece of work (`Yardstick`) just before
and after it, and what one process takes is carried over to another job in this unit, which holds how many processes
share a core as well. For CPUs. The table's times are yardsticks times that of the job.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer import distributed
from trainer.config import PretrainConfig
from trainer.game.game import Pair
from trainer.plan import memory
from trainer.plan.step import Link, Speed, step_of
from trainer.pretrain import read_config
from trainer.run import loop
from trainer.run.assemble import build_run, plan_run
from trainer.run.parts import Run
from trainer.run.resilience import Stop
from trainer.views import Key
from umbra.config import command, load, setting
from umbra.errors import UserError

ROOT = Path(__file__).parents[1]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Bytes that each of w processes receives, by those of the first tensor argument: of an all-gather the whole, of a
# reduce-scatter the own part.
FACTORS: dict[str, Callable[[float, int], float]] = {
    "all_reduce": lambda size, w: 2 * size * (w - 1) / w,
    "all_gather": lambda size, w: size * (w - 1) / w,
    "all_gather_into_tensor": lambda size, w: size * (w - 1) / w,
    "reduce_scatter": lambda size, w: size * (w - 1),
    "reduce_scatter_tensor": lambda size, w: size * (w - 1),
}
SKIP = 3


@dataclass
class ScaleConfig:
    """`processes` and ZeRO `stages` of the runs; ECGs a process; `steps`, of which the first three do not count.

    `clock`: wall, or cpu (the time of each process alone, for a machine that has fewer free cores than processes).
    `run`: further words of the runs.
    """

    processes: list[int] = field(default_factory=lambda: [1, 2, 4])
    stages: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    batch: int = setting(16, ">= 2")
    steps: int = setting(20, ">= 6")
    clock: str = setting("wall", choices=tuple(CLOCKS))
    run: list[str] = field(
        default_factory=lambda: ["encoder.args.width=32", "projector.hidden=1024", "masker.width=16"]
    )


def main(argv: list[str]) -> int:
    argv = [word for word in argv if not word.startswith("--local_rank")]
    if argv[:1] == ["worker"]:
        return worker(argv[1], argv[2:])
    cfg = load(ScaleConfig, None, argv)
    if not set(cfg.stages) <= {0, 1, 2, 3}:
        raise UserError("stages: use some of 0, 1, 2, 3")
    worst: dict[str, float] = {"memory": 0.0, "traffic": 0.0, "calls": 0.0, "seconds": 0.0}
    print(f"{cfg.batch} ECGs a process, {cfg.clock} time; measured / planned")
    print(f"{'processes':>9}{'zero':>6}{'MiB':>18}{'MB a step':>18}{'calls a step':>18}{'ms a step':>18}")
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), 2 * cfg.batch * max(cfg.processes))
        for stage in cfg.stages:
            alone = play(cfg, shards, Path(folder), 1, stage)["alone"]
            for count in cfg.processes:
                found = compared(cfg, play(cfg, shards, Path(folder), count, stage), alone)
                numbers = "".join(f"{measured:>9.2f} /{planned:>7.2f}" for measured, planned in found.values())
                print(f"{count:>9}{stage:>6}{numbers}", flush=True)
                for key, (measured, planned) in found.items():
                    worst[key] = max(worst[key], abs(measured / planned - 1) if planned else measured)
    print(json.dumps({f"{key}_off_by_at_most": round(value, 3) for key, value in worst.items()} | {"clock": cfg.clock}))
    return 0


def compared(cfg: ScaleConfig, seen: dict[str, Any], alone: float) -> dict[str, tuple[float, float]]:
    """(measured, planned) of MiB, MB a step, calls a step and ms a step; one process takes `alone` yardsticks."""
    run, world = read_config(seen["words"]), seen["world"]
    held = memory.states(run.zero, [sum(player) for player in seen["tensors"]], world).at_rest
    yard = seen["yard"]  # seconds, in this job
    speed = Speed(cfg.batch / (alone * yard), 0.0, "measured")
    step = step_of(run, run.zero, world, seen["tensors"], speed, Link(**seen["link"]))
    planned = step.compute + step.communication
    return {
        "memory": (seen["held"] / 2**20, held / 2**20),
        "traffic": (seen["received"] / 1e6, step.received / 1e6),
        "calls": (seen["calls"], step.calls),
        "seconds": (seen["yards"] * yard * 1e3, planned * 1e3),
    }


def make_shards(folder: Path, patients: int) -> Path:
    for words in (
        ["synth", f"output={folder}/recordings", f"patients={patients}", "rate=100"],
        ["build", "configs/shard/wfdb.yaml", f"input={folder}/recordings", f"output={folder}/shards", "rate=100",
         "seconds=10", "split.train=0.9", "split.val=0.05", "split.test=0.05"],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", "sharding", *words], cwd=ROOT, check=True, capture_output=True)
    return folder / "shards"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def play(cfg: ScaleConfig, shards: Path, folder: Path, count: int, stage: int) -> dict[str, Any]:
    """One job under the launcher -> what its first process reports."""
    out = folder / f"{count}-{stage}"
    words = ["configs/pretrain/same_window.yaml", f"data.path={shards}", f"run={out}-{time.monotonic_ns()}"]
    words += [f"zero={stage}", f"steps={cfg.steps}", f"batch.global={cfg.batch * count}", "precision=fp32"]
    words += ["wandb.mode=disabled", "log.figure_every=0", "log.heldout_every=0", "checkpoint.every=0", *cfg.run]
    launcher = ["deepspeed", "--num_gpus", str(count), "--master_port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*launcher, str(ROOT / "benchmarks" / "scale.py"), "worker", cfg.clock, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if not lines:
        raise UserError(f"a run of {count} processes ended without a result: {(done.stdout + done.stderr)[-2000:]}")
    return {**json.loads(lines[0]), "words": words}


# ---- in each process ------------------------------------------------------------------------------------------------


def worker(clock: str, words: list[str]) -> int:
    """A real run of these words; its first process prints what was seen of it."""
    now, cfg = CLOCKS[clock], read_config(words)
    counted = Counted()  # before DeepSpeed takes the collectives
    plan = plan_run(cfg)
    tensors = memory.tensors((plan.encoder, plan.masker))  # at stage 3 none is whole later
    world = distributed.initialise()
    run = build_run(plan, world)
    assert run is not None
    step = run.game.step
    yardstick = Yardstick(now)
    received: list[tuple[float, int]] = []

    def seen_step(*given: Any) -> Any:
        yardstick.beside()
        counted.bytes, counted.calls = 0.0, 0
        played = step(*given)
        received.append((counted.bytes, counted.calls))
        return played

    run.game.step = seen_step  # type: ignore[assignment, method-assign]
    with Stop(0, speaks=False).listening() as stop:
        loop.train(run, stop)
    yardstick.put_away()
    moved, calls = (median(numbers) for numbers in zip(*received[SKIP:], strict=True))
    result: dict[str, Any] = {"held": alive(), "received": moved, "calls": calls, "tensors": tensors}
    result |= {"yards": yardstick.of_steps(), "yard": yardstick.seconds(), "world": world.size}
    result["link"] = asdict(measured_link(sum(map(sum, tensors)), world.size, now))
    result["alone"] = played_alone(cfg, run, step, now) if world.size == 1 else 0.0
    if world.is_main:
        print("RESULT " + json.dumps(result), flush=True)
    distributed.finalise()
    return 0


class Counted:
    """Adds up the bytes that this process receives by the collectives of torch.distributed, taken as rings."""

    def __init__(self) -> None:
        self.bytes, self.calls = 0.0, 0
        for name in FACTORS:
            setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            first = given[0] if given else next(iter(named.values()))
            size = sum(t.nbytes for t in first) if isinstance(first, list) else first.nbytes
            self.bytes += FACTORS[name](size, dist.get_world_size())
            self.calls += dist.get_world_size() > 1
            return function(*given, **named)

        return counting


class Yardstick:
    """A fixed piece of work, which is timed between steps."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.begun, self.ended = now, list[float](), list[float]()
        layers = nn.Conv1d(12, 64, 7), nn.ReLU(), nn.Conv1d(64, 64, 7), nn.ReLU(), nn.Conv1d(64, 8, 7)
        self.network = nn.Sequential(*layers)
        self.signals = torch.zeros(16, 12, 1000)

    def beside(self) -> None:
        """To be called before each step."""
        self.begun.append(self.now())
        self.network(self.signals).square().sum().backward()
        self.ended.append(self.now())

    def put_away(self) -> None:
        """Frees its memory."""
        del self.network, self.signals

    def of_steps(self) -> float:
        """What a step takes in yardsticks, each against those before and after it: the median, without the first."""
        yards = self._yards()
        steps = [after - before for before, after in zip(self.ended, self.begun[1:], strict=False)]
        beside = [2 * step / (one + other) for step, (one, other) in zip(steps, pairwise(yards), strict=True)]
        return median(beside[SKIP:])

    def seconds(self) -> float:
        return median(self._yards()[SKIP:])

    def _yards(self) -> list[float]:
        return [after - before for before, after in zip(self.begun, self.ended, strict=True)]


def alive() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measured_link(numbers: int, world: int, now: Callable[[], float]) -> Link:
    """By an all-reduce as large as the gradients, and by an all-gather of few numbers."""
    if world == 1:
        return Link(1.0)
    whole = torch.zeros(numbers)
    large = shortest(lambda: dist.all_reduce(whole), now)
    few = torch.zeros(64), torch.zeros(64 * world)
    small = shortest(lambda: dist.all_gather_into_tensor(few[1], few[0]), now)
    return Link(FACTORS["all_reduce"](whole.nbytes, world) / max(large - small, 1e-9), small)


def shortest(collective: Callable[[], Any], now: Callable[[], float], times: int = 20) -> float:
    """The shortest time of a call that begins in all processes at once."""
    taken = []
    for _ in range(times):
        dist.barrier()
        began = now()
        collective()
        taken.append(now() - began)
    return min(taken)


def played_alone(cfg: PretrainConfig, run: Run, step: Callable[..., Any], now: Callable[[], float]) -> float:
    """What a step of this process alone takes in yardsticks, on ECGs that are there."""
    x, v = torch.randn(2, cfg.contrast, *run.train.shape)
    pair, yardstick = Pair(x, v, Key(0, 0, torch.arange(cfg.contrast))), Yardstick(now)
    for number in range(cfg.steps):
        yardstick.beside()
        step([pair], number)
    return yardstick.of_steps()


if __name__ == "__main__":
    command(main)
