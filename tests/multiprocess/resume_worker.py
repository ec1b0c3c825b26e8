"""Plays steps under real engines and saves; or loads what another number of processes saved, saves it again, goes on.

What is saved in the course of the steps is also saved in the background while the next step is played.

Started by test_resume.py; the global batches are the same at any world size.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from engines_worker import (  # beside this script
    ADAMW,
    HOP,
    TEMPERATURE,
    Case,
    global_pair,
    mine,
    partition_all,
    players,
)

from trainer import distributed
from trainer.config import BatchConfig, PretrainConfig
from trainer.game.batchnorm import over_all_ranks
from trainer.game.game import Game, NonFiniteError
from trainer.run import checkpoint, engines
from trainer.run.saving import Saver
from umbra.config import as_dict

BATCH, SAVED = 8, 3


def spoil(game: Game, case: Case, world: distributed.World) -> None:
    """A step that is skipped: one ECG of the last contrast batch, on rank 0, is not finite."""
    pairs = [global_pair(9, micro, 2, case.dtype) for micro in range(case.accumulation)]
    pairs[-1].x[0, 0, 0] = float("nan")
    try:
        game.step([mine(pair, world, BATCH // world.size) for pair in pairs], SAVED)
    except NonFiniteError:
        return
    raise AssertionError("the step was not skipped")


def main() -> None:
    words = json.loads(next(a for a in sys.argv[1:] if a.startswith("{")))
    world = distributed.initialise(timeout_s=120)
    torch.backends.cudnn.allow_tf32 = False
    partition_all()
    for number, values in enumerate(words["cases"]):
        case, folder = Case(**values), Path(words["into"]) / str(number)
        cfg = PretrainConfig(zero=case.zero, batch=BatchConfig(case.accumulation, 1), precision="fp32", game=case.game)
        state = {"config": as_dict(cfg), "fingerprint": "", "world": world.size}
        modules = players(case)
        path = Path(words["of"]) / str(number) / "checkpoints" / f"step-{SAVED}" if words["of"] else None
        if path:
            checkpoint.prepare(path, modules, state)
        made: dict[str, Any] = {}
        for name, module in modules.items():
            over_all_ranks(module)
            made[name] = engines.make_engine(module, ADAMW[name], cfg, world.device)
        start = checkpoint.load(path, made, state) if path else 0
        saver, background = (Saver(place, 9, world.device) for place in (folder, folder / "background"))
        game = Game(made["encoder"], made["masker"], case.game, TEMPERATURE, HOP, skip=engines.skip_step)
        if path:
            saver.save(start, made, state)
            spoil(game, case, world)  # of which nothing may be left
        for step in range(start, SAVED + 1):
            pairs = [global_pair(step, micro, 2, case.dtype) for micro in range(case.accumulation)]
            game.step([mine(pair, world, BATCH // world.size) for pair in pairs], step)
            if step + 1 >= SAVED:
                saver.save(step + 1, made, state)
                background.save(step + 1, made, state, background=True)
        background.finish()
    distributed.finalise()


if __name__ == "__main__":
    with distributed.ended():
        main()
