"""What does the adversary cost? `python -m benchmarks.step [key=value]`: the adversarial step against plain SimCLR's.

The same encoder, batch and precision, both under DeepSpeed in this one process, steps taken in turn; medians.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sharding.config import command, load
from trainer import dist
from trainer.config import PlayerConfig, PretrainConfig
from trainer.engines import make_engine
from trainer.game import Game, Pair, Recogniser, contrast
from trainer.masking import GameConfig
from trainer.models import build_encoder
from trainer.models.masker import UNet
from trainer.models.projector import Projector
from trainer.views import Key


@dataclass
class StepConfig:
    """The step to time: `batch` ECGs of `samples` at `rate` Hz; `steps` of either kind, after two warm ones."""

    encoder: str = "resnet18"
    args: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    samples: int = 1000
    rate: float = 100.0
    steps: int = 7
    threads: int = 0


def main(argv: list[str]) -> int:
    cfg = load(StepConfig, None, argv)
    world = dist.initialise()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    sides = {"SimCLR": build(cfg, world, False), "adversarial": build(cfg, world, True)}
    pair = make_pair(cfg, world.device)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(cfg.steps + 2):
        for name, game in sides.items():
            began = time.perf_counter()
            game.step([pair], step)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            if step >= 2:
                times[name].append(time.perf_counter() - began)
    flops = {name: count_flops(game, pair) for name, game in sides.items()}
    print_table(cfg, world.device, {n: median(t) for n, t in times.items()}, flops)
    dist.finalise()
    return 0


def build(cfg: StepConfig, world: dist.World, adversarial: bool) -> Game:
    run = PretrainConfig()
    torch.manual_seed(0)
    backbone = build_encoder(cfg.encoder, 12, cfg.samples, cfg.args)
    encoder = make_engine(Recogniser(backbone, Projector(backbone.dim)), PlayerConfig(), run, world.device)
    game = GameConfig(enabled=adversarial)
    masker = None
    if adversarial:
        masker = make_engine(UNet(12, game.masks, game.hop(cfg.rate)), PlayerConfig(lr=1e-4), run, world.device)
    return Game(encoder, masker, game, 0.1, game.hop(cfg.rate))


def make_pair(cfg: StepConfig, device: torch.device) -> Pair:
    x, v = torch.randn(2, cfg.batch, 12, cfg.samples, device=device)
    return Pair(x, v, Key(0, 0, torch.arange(cfg.batch, device=device)))


def count_flops(game: Game, pair: Pair) -> int:
    """Forward and backward of one step's networks, on the modules behind the engines."""
    with FlopCounterMode(display=False) as counter:
        seconds = [pair.v]
        if game.masker is not None:
            seconds = game.covered(pair.v, game.hide(game.masker.module, pair)[1])
        loss, _ = contrast(game.encoder.module, pair.x, seconds, game.temperature)
        loss.backward()
    for engine in (game.encoder, game.masker):
        if engine is not None:
            engine.module.zero_grad()
    return counter.get_total_flops()


def print_table(cfg: StepConfig, device: torch.device, seconds: dict[str, float], flops: dict[str, int]) -> None:
    print(f"{cfg.encoder} {cfg.args or ''} batch {cfg.batch} x 12 x {cfg.samples}, {device.type}")
    print(f"{'step':<14}{'ms':>10}{'GFLOP':>10}{'ECG/s':>10}")
    for name, s in seconds.items():
        print(f"{name:<14}{s * 1e3:>10.1f}{flops[name] / 1e9:>10.2f}{cfg.batch / s:>10.1f}")
    print(
        json.dumps(
            {
                "adversarial_over_simclr": round(seconds["adversarial"] / seconds["SimCLR"], 4),
                "flops_adversarial_over_simclr": round(flops["adversarial"] / flops["SimCLR"], 4),
                "device": device.type,
            }
        )
    )


if __name__ == "__main__":
    command(main)
