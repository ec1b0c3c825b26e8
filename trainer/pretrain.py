"""Pre-trains an encoder on a sharded data set.

    deepspeed trainer/pretrain.py CONFIG.yaml data.path=DIR run=DIR key=value ...

The configs of the methods are in configs/pretrain/; `python -m umbra.config pretrain` describes the keys. `--dry-run`
prints the resolved config and a summary of the run. The same command again resumes from the newest checkpoint in the
run directory.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import NoReturn

if __name__ == "__main__":
    if sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # put first by the launcher; `config` or `figures` here would shadow other modules
    if (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, where another one is installed
    from trainer.run import terminal

    terminal.prepare()

import torch

from trainer import distributed, heartbeat, watchdog
from trainer.config import PretrainConfig
from trainer.game.batchnorm import batch_norms
from trainer.observe.curves import loss_curves
from trainer.observe.metrics import METRICS
from trainer.run import checkpoint, directory, loop
from trainer.run.assemble import Plan, build_run, describe, plan_run
from trainer.run.caching import describe_cache
from trainer.run.parts import Run
from trainer.run.problems import Problems
from trainer.run.record import set_status, write_record
from trainer.run.resilience import Stop
from trainer.run.saving import NotSaved
from umbra.config import command, dump, load, split_words
from umbra.errors import UserError

CONFIGS = {"": "trainer.config:PretrainConfig"}


def main(argv: list[str]) -> int:
    words = [w for w in argv if not w.startswith("--local_rank")]
    cfg = read_config(words)
    plan = plan_run(cfg)
    if "--dry-run" in words:
        print(
            dump(cfg) + describe(plan) + describe_cache(cfg, plan.train, plan.heldout, plan.order, plan.total), end=""
        )
        return 0
    if checkpoint.newest(cfg.run) and cfg.resume == "never":
        raise UserError(f"run={cfg.run} has checkpoints and resume=never: choose another run directory")
    rank, size, limits = distributed.launched_rank(), distributed.launched_size(), cfg.hang
    with directory.held(cfg.run, rank == 0):
        times = 60 * limits.minutes, 60 * limits.start_minutes
        with closing(watchdog.Watch(Path(cfg.run), rank, size, *times, lambda: set_status(cfg.run, "failed"))) as watch:
            _join(cfg, plan, watch)
    return 0


def _join(cfg: PretrainConfig, plan: Plan, watch: watchdog.Watch) -> None:
    """Joins the other processes of the run and trains."""
    heartbeat.doing("joining of the processes")
    world = distributed.initialise(timeout_s=120 * (cfg.hang.minutes + cfg.hang.start_minutes))
    try:
        heartbeat.doing("start-up")
        run = build_run(plan, world)
        if run is not None:
            if world.is_main:
                print(describe(plan), end="", flush=True)
                print(
                    f"# run {cfg.run}: step {run.start} to {run.total} on {world.size} x {world.device.type}",
                    flush=True,
                )
            _train(run, watch)
        elif world.is_main:
            print(
                f"run {Path(cfg.run)} already has its {plan.total} steps; raise epochs or steps, or set another run=DIR"
            )
    except RuntimeError:
        watch.give_way()
        raise
    finally:
        distributed.finalise()


def read_config(words: list[str]) -> PretrainConfig:
    """The config of a command line: an optional YAML first, then `key=value` words."""
    path, overrides = split_words(words, ["--dry-run"])
    cfg = load(PretrainConfig, path, overrides)
    cfg.method = cfg.method or (Path(path).stem if path else "default")
    cfg.check()
    return cfg


def _train(run: Run, watch: watchdog.Watch) -> None:
    """Trains, and closes the run's files and threads even if an error occurs."""
    try:
        with Stop(run.cfg.max_minutes, speaks=run.world.is_main).listening() as stop:
            done = loop.train(run, stop)
            heartbeat.doing("end", patient=True)
            missing = loop.missing(run, done)
            if run.world.is_main and not missing:
                write_record(run.cfg, run.record, "finished" if done == run.total else "interrupted")
    except UserError as error:
        error.alone = not isinstance(error, NotSaved)  # which all ranks raise
        raise
    except RuntimeError as error:
        watch.give_way()
        if is_out_of_memory(error):
            raise _out_of_memory(run) from error
        if run.world.is_main or " by peer" not in str(error):
            raise
        raise SystemExit("error: another process of the run has ended, and this one with it") from error
    finally:
        run.metrics.close({})
        for part in (run.cache, run.recorder):
            if part is not None:
                part.close()
    if missing:
        _stop_for_data(run, done, missing)
    if run.world.is_main:
        _end(run, done, stop.reason or "another process was asked to stop")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or, on a CPU, torch's allocator has no more memory."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _out_of_memory(run: Run) -> UserError:
    """The error of a process, perhaps the only one, that has no more memory: what to set."""
    cfg, world, host = run.cfg, run.world, os.uname().nodename
    share = cfg.batch.device or cfg.contrast // world.size
    if batch_norms(run.engines["encoder"].module):
        fix = "with batch norm use more processes, or a smaller batch.contrast"
    elif share > 1:
        fix = f"set batch.device={share // 2} (now {share} ECGs per forward pass), which gives the same gradients"
    else:
        fix = "one ECG per forward pass is too much: use a smaller encoder or masker, or zero=3 on more processes"
    said = UserError(f"rank {world.rank} on {host} is out of memory in step {run.at + 1}: {fix}, and run it again")
    said.alone = True  # the others may have room
    return said


def _end(run: Run, done: int, reason: str) -> None:
    """Writes the curves of a finished or interrupted run, and prints the next command."""
    curves, problems = run.folder / "figures" / "curves.png", Problems()
    with problems.noted():
        loss_curves(run.folder / METRICS, curves)
    problems.warn(str(curves))
    finished = done == run.total
    said = "finished" if finished else f"stopped ({reason}) with a checkpoint"
    export = f"python -m trainer.export run={quote(str(run.folder))}"
    follow = export if finished else "the same command resumes from here"
    print(f"# {said} at step {done} of {run.total}; next: {follow}", flush=True)


def _stop_for_data(run: Run, done: int, missing: str) -> NoReturn:
    """Ends a run whose next shards are not available; `done` is the step of its newest checkpoint (0: none)."""
    if run.world.is_main:
        write_record(run.cfg, run.record, "failed")
    distributed.agree("")  # a barrier: the launcher kills the other ranks as soon as one exits
    kept = f"a checkpoint of step {done}" if done else "no checkpoint"
    raise UserError(f"{missing}; the run stopped before the step that needs it, with {kept}")


if __name__ == "__main__":
    with distributed.ended():
        command(main, quiet=distributed.local_rank() != 0)
