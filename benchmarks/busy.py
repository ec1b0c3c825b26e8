"""How fast is one process beside another program? `python -m benchmarks.busy [key=value]`.

The training step of one process that was started with the defaults, alone and while another process keeps one core
busy; and the same with threads that spin while they wait for one another, as libgomp's do by default. Rounds of fresh
processes, the sides in turn; medians. `ratio` is that of our defaults: samples per second beside a busy core over those
alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from umbra.config import command, load, setting

OURS, SPINNING = "defaults", "spinning"
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@dataclass
class BusyConfig:
    """The step to time, on batches of `batch` ECGs of `samples`, for `seconds` after two steps, in each of `rounds`."""

    args: dict[str, Any] = field(default_factory=lambda: {"width": 16, "embedding": 128})
    batch: int = 64
    samples: int = 1000
    rounds: int = setting(5, ">= 1")
    seconds: float = 4.0
    once: bool = False
    """Times this process alone, and prints its samples per second: what the benchmark starts."""


def main(words: list[str]) -> None:
    config = load(BusyConfig, None, words)
    if config.once:
        print(json.dumps(train(config)))
        return
    speeds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(config.rounds):
        for side in (OURS, SPINNING):
            for beside in (False, True):
                with busy_core() if beside else contextlib.nullcontext():
                    speeds.setdefault((side, beside), []).append(started(side, words))
    middle = {key: median(values) for key, values in speeds.items()}
    ratios = {side: middle[side, True] / middle[side, False] for side in (OURS, SPINNING)}
    print(f"{'samples/s':<12}{'alone':>10}{'beside':>10}{'ratio':>8}   load {os.getloadavg()[0]:.1f}")
    for side, ratio in ratios.items():
        print(f"{side:<12}{middle[side, False]:>10.1f}{middle[side, True]:>10.1f}{ratio:>8.2f}")
    figures = {"ratio": ratios[OURS], "ratio_spinning": ratios[SPINNING]}
    figures["ours_over_spinning_beside"] = middle[OURS, True] / middle[SPINNING, True]
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process computes without end."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def started(side: str, words: list[str]) -> float:
    """Samples per second of a fresh process."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if side == SPINNING:
        env["GOMP_SPINCOUNT"] = "300000"  # libgomp's default, where threads are not more than cores
    call = [sys.executable, "-m", "benchmarks.busy", *words, "once=true"]
    done = subprocess.run(call, env=env, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return float(done.stdout.splitlines()[-1])


def train(config: BusyConfig) -> float:
    """Samples per second of adversarial steps."""
    import torch

    from benchmarks.step import StepConfig, build, make_pair
    from trainer import distributed
    from trainer.game.masking import GameConfig

    world = distributed.initialise()
    game = build(StepConfig(args=config.args), world, "resnet18", config.samples, GameConfig())
    pair = make_pair(config.batch, config.samples, world.device)
    for step in range(2):
        game.step([pair], step)
    seen, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < config.seconds:
        game.step([pair], 0)
        seen += config.batch
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    distributed.finalise()
    return seen / seconds


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.busy"
    command(main)
