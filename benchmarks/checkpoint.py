"""How long does a step wait for its checkpoint? `python -m benchmarks.checkpoint [key=value]`.

The same state of a ViT-B with its masker is saved at once and in the background, in turn, and the two are compared byte
by byte. While the latter is written, steps are played. Medians of the rounds; the first save in the background, which
allocates the memory of its copy, is also given alone. `ratio`: seconds that a step waits, background over at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.step import StepConfig, build, make_pair
from trainer import distributed
from trainer.game.game import Game
from trainer.game.masking import GameConfig
from trainer.run.checkpoint import committed
from trainer.run.saving import Saver
from umbra.config import command, load, setting
from umbra.files import make_folder, sha256


@dataclass
class CheckpointConfig:
    """The state to save: `encoder` with `args` (by default a ViT-B), on windows of `samples`, under ZeRO `zero`; the
    steps in between are of `batch` ECGs. Saved in a new folder in `place` (empty: the system's), which is removed.
    """

    encoder: str = "vit_s"
    args: dict[str, Any] = field(default_factory=lambda: {"width": 768, "heads": 12})
    samples: int = 1000
    batch: int = setting(2, ">= 2")
    rounds: int = setting(5, ">= 2")
    zero: int = setting(0, choices=(0, 1, 2, 3))
    place: str = ""


@dataclass
class Times:
    """Seconds of a round: of a save `at_once`; that a step waits for one in the background (`stall`), and until that is
    `written`; of a step `alone` and `beside` a save that is being written (the median of each)."""

    at_once: float
    stall: float
    written: float
    alone: float
    beside: float


def main(words: list[str]) -> None:
    config = load(CheckpointConfig, None, words)
    world = distributed.initialise()
    game = build(StepConfig(args=config.args), world, config.encoder, config.samples, GameConfig(), zero=config.zero)
    pair = make_pair(config.batch, config.samples, world.device)

    def step() -> None:
        game.step([pair], 0)
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    step()
    folder = tempfile.mkdtemp(prefix="checkpoints-", dir=make_folder(config.place, "place") if config.place else None)
    try:
        report(*measure(config, game, step, Path(folder), world.device))
    finally:
        shutil.rmtree(folder)
        distributed.finalise()


def measure(
    config: CheckpointConfig, game: Game, step: Callable[[], None], folder: Path, device: torch.device
) -> tuple[list[Times], bool, float]:
    """(seconds of each round, whether all files were equal, GB of a checkpoint)"""
    engines = {"encoder": game.encoder, "masker": game.masker}
    at_once, background = (Saver(folder / how, 1, device) for how in ("at-once", "background"))
    rounds, equal = [], True
    for number in range(1, config.rounds + 1):
        alone = [timed(step) for _ in range(3)]
        waited = timed(at_once.save, number, engines, {})
        began = time.perf_counter()
        stall = timed(background.save, number, engines, {}, True)
        beside = []
        while number not in committed(folder / "background"):
            beside.append(timed(step))
            background.look()
        written = time.perf_counter() - began
        background.finish()
        rounds.append(Times(waited, stall, written, median(alone), median(beside)))
        found = [hashes(committed(folder / how)[number]) for how in ("at-once", "background")]
        equal = equal and found[0] == found[1]
    size = sum(path.stat().st_size for path in committed(folder / "at-once")[number].rglob("*")) / 1e9
    return rounds, equal, size


def timed(work: Callable[..., object], *words: Any) -> float:
    began = time.perf_counter()
    work(*words)
    return time.perf_counter() - began


def hashes(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}


def report(rounds: list[Times], equal: bool, size: float) -> None:
    print(f"{size:.2f} GB, {'the same bytes' if equal else 'DIFFERENT BYTES'}")
    print(f"{'round':<8}{'at once s':>10}{'stall s':>10}{'written s':>10}{'step s':>10}{'beside s':>10}")
    for number, r in enumerate(rounds, 1):
        print(f"{number:<8}{r.at_once:>10.3f}{r.stall:>10.3f}{r.written:>10.3f}{r.alone:>10.3f}{r.beside:>10.3f}")
    figures: dict[str, Any] = {
        "ratio": median(r.stall for r in rounds) / median(r.at_once for r in rounds),
        "ratio_first": rounds[0].stall / median(r.at_once for r in rounds),
        "step_beside_over_alone": median(r.beside for r in rounds) / median(r.alone for r in rounds),
    }
    print(
        json.dumps({name: round(value, 3) for name, value in figures.items()} | {"equal": equal, "gb": round(size, 2)})
    )


if __name__ == "__main__":
    command(main)
