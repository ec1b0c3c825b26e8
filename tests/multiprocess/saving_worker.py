"""Plays steps under real engines; saves each state at once, and in the background while the next steps are played.

Started by test_saving.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engines_worker import (
    ADAMW,
    HOP,
    TEMPERATURE,
    Case,
    global_pair,
    mine,
    partition_all,
    players,
)  # beside this script

from trainer import distributed
from trainer.config import BatchConfig, PretrainConfig
from trainer.game.batchnorm import over_all_ranks
from trainer.game.game import Game
from trainer.run import engines
from trainer.run.saving import Saver

BATCH = 8


def main() -> None:
    words = json.loads(next(a for a in sys.argv[1:] if a.startswith("{")))
    world = distributed.initialise(timeout_s=120)
    partition_all()
    for number, values in enumerate(words["cases"]):
        case = Case(**values)
        cfg = PretrainConfig(zero=case.zero, batch=BatchConfig(case.accumulation, 1), precision="fp32", game=case.game)
        made = {}
        for name, module in players(case).items():
            over_all_ranks(module)
            made[name] = engines.make_engine(module, ADAMW[name], cfg, world.device)
        game = Game(made["encoder"], made["masker"], case.game, TEMPERATURE, HOP, skip=engines.skip_step)
        at_once, background = (Saver(Path(words["into"]) / f"{number}-{how}", 9, world.device) for how in "ab")
        for step in range(case.steps):
            pairs = [global_pair(step, micro, 2, case.dtype) for micro in range(case.accumulation)]
            game.step([mine(pair, world.rank, BATCH // world.size) for pair in pairs], step)
            background.look()
            at_once.save(step + 1, made, {"step": step})
            background.save(step + 1, made, {"step": step}, background=True)
        background.finish()
    distributed.finalise()


if __name__ == "__main__":
    with distributed.ended():
        main()
