"""A step of this tree against that of an older commit: `python -m benchmarks.step against=COMMIT`.

Each tree plays in a process of its own, which imports that tree alone; steps are played in turns, and the process whose
turn it is not waits. Both networks are drawn from one seed, and nothing but the tree differs, except that this one
compiles as a run does (`compile`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

MARK = "@answer "  # begins a line of a worker that is no one else's output
SECONDS = 900.0  # that an answer may take: the first one compiles
OLD, NEW = "old", "new"
SIMCLR, OURS = "SimCLR", "adversarial"


def against(cfg: Any) -> dict[str, Any]:
    """Times the sides in turns and prints a row for each encoder and length -> the figures, also printed as they come.

    `cfg`: a `StepConfig`. Raises `UserError` if the commit is not there or a side cannot play.
    """
    from benchmarks._tree import ROOT, worktree

    figures: dict[str, Any] = {}
    with worktree(cfg.against) as folder, contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(worker(tree, side)) for side, tree in ((OLD, folder), (NEW, ROOT))}
        print(f"{cfg.against} and this tree, {cfg.clock} time; peak: of a step, besides weights and optimiser")
        print(f"{'':<28}{'ms':>9}{'ms':>9}{'times':>7}{'ECG/s':>9}{'MFU':>7}{'peak MiB':>10}{'MiB':>9}{'ratio':>7}")
        for name in cfg.encoders:
            for samples in cfg.samples:
                found = compare(cfg, sides, name, samples)
                figures["device"] = found.pop("device")
                for key, value in found.items():
                    figures[f"{name} {cfg.batch} x {samples} {key}"] = value
                print(json.dumps(figures), flush=True)
    return figures


def compare(cfg: Any, sides: dict[str, Worker], name: str, samples: int) -> dict[str, Any]:
    """Figures of one encoder and length: `speedup`, `memory` (new over old), `adversarial_over_simclr`, `mfu`."""
    from umbra.encoders.flops import peak_of

    words = {"encoder": name, "args": cfg.args, "batch": cfg.batch, "samples": samples, "threads": cfg.threads}
    played = [(OLD, OURS), (NEW, OURS), (NEW, SIMCLR)]
    for side in sides:
        own = {"seconds": cfg.seconds, **({"compile": cfg.compile} if side == NEW else {})}
        built = sides[side].ask(do="build", sides=[what for who, what in played if who == side], config=own, **words)
    times: dict[tuple[str, str], list[float]] = {what: [] for what in played}
    for step in range(2 + cfg.steps):
        turn = step % len(played)
        for side, what in played[turn:] + played[:turn]:
            answer = sides[side].ask(do="play", side=what, step=step, clock=cfg.clock)
            times[side, what].append(answer["seconds"])
    ms = {what: 1e3 * median(values[2:]) for what, values in times.items()}
    old, new = (sides[side].ask(do="measure", side=OURS) for side in (OLD, NEW))
    mfu = 1e9 * new["gflop"] / (ms[NEW, OURS] / 1e3) / peak_of(built["name"])
    speedup, memory = ms[OLD, OURS] / ms[NEW, OURS], new["mib"] / old["mib"]
    line = f"{name} {cfg.batch} x 12 x {samples}"
    line = f"{line:<28}{ms[OLD, OURS]:>9.1f}{ms[NEW, OURS]:>9.1f}{speedup:>7.2f}{1e3 * cfg.batch / ms[NEW, OURS]:>9.1f}"
    print(f"{line}{mfu:>7.3f}{old['mib']:>10.0f}{new['mib']:>9.0f}{memory:>7.2f}", flush=True)
    return {
        "device": built["name"],
        "speedup": round(speedup, 3),
        "ms": round(ms[NEW, OURS], 2),
        "adversarial_over_simclr": round(ms[NEW, OURS] / ms[NEW, SIMCLR], 3),
        "mfu": round(mfu, 4) if mfu == mfu else None,
        "memory": round(memory, 3),
    }


class Worker:
    """A process that plays steps when it is asked to."""

    def __init__(self, process: subprocess.Popen[str], side: str) -> None:
        self.process, self.side = process, side

    def ask(self, **words: Any) -> dict[str, Any]:
        """The answer. Raises `UserError` if the process ends without one, or has none after `SECONDS`."""
        from umbra.errors import UserError

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(SECONDS, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith(MARK):
                    found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                    return found
        except BrokenPipeError:
            pass
        finally:
            late.cancel()
        raise UserError(f"the {self.side} side ended, or took more than {SECONDS:.0f} s, at {words['do']}")


@contextlib.contextmanager
def worker(tree: Path, side: str) -> Iterator[Worker]:
    """A process that has imported `tree`, while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process, side)
    finally:
        process.kill()
        process.wait()


# ---- the worker: names that both trees have --------------------------------------------------------------------------


def serve() -> None:
    """Answers the lines of the standard input."""
    import torch

    import benchmarks.step as step

    names: Any = step  # what moved between the trees keeps its name there
    world = (getattr(names, "distributed", None) or names.dist).initialise()
    games: dict[str, Any] = {}
    pair: Any = None
    for line in sys.stdin:
        words = json.loads(line)
        answer: dict[str, Any] = {}
        if words["do"] == "build":
            games.clear()
            pair = None
            if words["threads"]:
                torch.set_num_threads(words["threads"])
            cfg = step.StepConfig(args=words["args"], **words["config"])
            for what in words["sides"]:
                game = names.GameConfig(enabled=what != SIMCLR)
                games[what] = step.build(cfg, world, words["encoder"], words["samples"], game)
            pair = step.make_pair(words["batch"], words["samples"], world.device)
            cuda = world.device.type == "cuda"
            answer["name"] = torch.cuda.get_device_name(world.device) if cuda else "cpu"
        elif words["do"] == "play":
            now = step.CLOCKS[words["clock"]]
            began = now()
            step.player(words["side"], games[words["side"]])(pair, words["step"])
            if pair.x.is_cuda:
                torch.cuda.synchronize()
            answer["seconds"] = now() - began
        else:
            play = step.player(words["side"], games[words["side"]])
            answer["gflop"], answer["mib"] = step.measured(lambda: play(pair, 0), world.device)  # noqa: B023
        print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
