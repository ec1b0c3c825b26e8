"""Pre-trains an encoder on a sharded data set.

    deepspeed trainer/pretrain.py CONFIG.yaml data.path=DIR run=DIR key=value ...

The configs of the methods are in configs/pretrain/; `python -m umbra.config pretrain` describes the keys. With
`--dry-run` all of them are printed, and what would be done. The same command again goes on from the newest checkpoint
of the run directory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__" and Path(sys.path[0]).name == "trainer":
    del sys.path[0]  # the launcher puts this folder first, where `config` or `figures` would hide other modules

from trainer import distributed
from trainer.config import PretrainConfig
from trainer.observe.curves import loss_curves
from trainer.observe.metrics import METRICS
from trainer.run import checkpoint, loop
from trainer.run.assemble import build_run, describe, describe_cache, plan_run
from trainer.run.record import write_record
from trainer.run.resilience import Stop
from umbra.config import command, dump, load, split_words
from umbra.errors import UserError


def main(argv: list[str]) -> int:
    words = [w for w in argv if not w.startswith("--local_rank")]
    cfg = read_config([w for w in words if w != "--dry-run"])
    plan = plan_run(cfg)
    if "--dry-run" in words:
        print(dump(cfg) + describe(plan) + describe_cache(plan), end="")
        return 0
    if checkpoint.newest(cfg.run) and cfg.resume == "never":
        raise UserError(f"run={cfg.run} holds checkpoints already and resume=never: choose another run directory")
    world = distributed.initialise()
    try:
        run = build_run(plan, world)
        if run is not None:
            if world.is_main:
                print(describe(plan), end="", flush=True)
                print(
                    f"# run {cfg.run}: step {run.start} to {run.total} on {world.size} x {world.device.type}",
                    flush=True,
                )
            _train(run)
        elif world.is_main:
            print(
                f"run {Path(cfg.run)} has its {plan.total} steps already; raise epochs or steps, or choose another run="
            )
    finally:
        distributed.finalise()
    return 0


def read_config(words: list[str]) -> PretrainConfig:
    """The config of a command line: an optional YAML first, then `key=value` words."""
    path, overrides = split_words(words)
    cfg = load(PretrainConfig, path, overrides)
    cfg.method = cfg.method or (Path(path).stem if path else "default")
    cfg.check()
    return cfg


def _train(run: loop.Run) -> None:
    """Trains and closes what was open, whatever happens."""
    try:
        with Stop(run.cfg.max_minutes).listening() as stop:
            done = loop.train(run, stop)
        missing = loop.missing(run, done)
    except UserError as error:
        error.alone = True
        raise
    finally:
        run.metrics.close({})
        for part in (run.cache, run.recorder):
            if part is not None:
                part.close()
    if missing:
        _stop_for_data(run, done, missing)
    if run.world.is_main:
        _end(run, done, stop.reason or "another process was asked to")


def _end(run: loop.Run, done: int, reason: str) -> None:
    """Of a run that has its steps, or was asked to stop: its curves, its state, what to do next."""
    loss_curves(run.folder / METRICS, run.folder / "figures" / "curves.png")
    finished = done == run.total
    write_record(run.cfg, run.record, "finished" if finished else "interrupted")
    said = "finished" if finished else f"stopped ({reason}) with a checkpoint"
    follow = f"python -m trainer.export run={run.folder}" if finished else "the same command goes on from here"
    print(f"# {said} at step {done} of {run.total}; next: {follow}", flush=True)


def _stop_for_data(run: loop.Run, done: int, missing: str) -> NoReturn:
    """Ends a run whose next data cannot be had; its newest checkpoint is of step `done`, if that is not the first."""
    if run.world.is_main:
        write_record(run.cfg, run.record, "failed")
    distributed.agree("")  # the launcher ends the others once one has ended
    kept = f"a checkpoint of step {done}" if done else "no checkpoint"
    raise UserError(f"{missing}; the run stopped before they were due, with {kept}")


if __name__ == "__main__":
    with distributed.ended():
        command(main, quiet=distributed.local_rank() != 0)
