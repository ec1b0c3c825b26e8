"""What does this GPU make of it? `make gpu`, or `python -m benchmarks.gpu [key=value]`.

The tests marked `gpu`, the step against that of an older commit and against plain SimCLR's, and pre-training by its own
command on synthetic shards; one table, and one JSON line last. Each part is a process with a time limit, so that all
ends within `minutes`; one that fails, or does not end, is said to, and the others go on. `device=cpu` does the same in
small on a CPU, to see that the parts work: its times say nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._tree import ROOT
from umbra.config import check_fields, command, load, setting
from umbra.errors import UserError

Figures = dict[str, Any]


@dataclass
class GpuConfig:
    """What is measured, and on what."""

    device: str = setting("auto", choices=("auto", "cpu"))
    """`auto`: the GPU; `cpu`: all in small, on the CPU."""
    minutes: float = setting(8.0, "> 0")
    """When all has to end."""
    against: str = "42d8aac"
    """The commit that the step is compared with."""
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """What is done: `tests`, `pretrain`, `step`, `paper`, in this order."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        check_fields(self)
        if wrong := [name for name in self.parts if name not in PARTS]:
            raise UserError(f"parts: {wrong[0]} is unknown; use {', '.join(PARTS)}")
        if self.device == "auto" and not torch.cuda.is_available():
            raise UserError("torch finds no GPU here; device=cpu does the same in small on the CPU")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the parts; `steps`: of each side of a comparison."""

    marked: str
    encoders: list[str]
    args: str
    batch: int
    small: int
    samples: int
    steps: int
    patients: int
    global_batch: int
    rate: int
    trained: int
    every: int
    paper_width: int
    paper_batch: int


GPU = Sizes("gpu", ["resnet18", "vit_s", "xresnet1d101"], "{}", 256, 32, 2500, 12, 1024, 512, 250, 80, 20, 512, 32)
CPU = Sizes("as_gpu and not full", ["resnet18"], "{width: 8}", 4, 2, 250, 2, 24, 8, 100, 6, 2, 16, 2)


@dataclass(frozen=True)
class Bench:
    """What the parts share: sizes, environment of their processes, a folder, and when all has to end."""

    cfg: GpuConfig
    sizes: Sizes
    env: dict[str, str]
    folder: Path
    deadline: float

    def run(self, words: list[str], share: float = 1.0) -> tuple[str, str]:
        """(output, what went wrong: empty if nothing did) of a Python command, in `share` of the time that is left."""
        limit = max(1.0, share * (self.deadline - time.monotonic()))
        path = self.folder / f"{words[-1].split('=')[0].replace('/', '-')[:20]}-{time.monotonic():.0f}.txt"
        with open(path, "w+") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=self.env, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            wrong = ""
            try:
                code = process.wait(limit)
                wrong = f"exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                wrong = f"no end within {limit:.0f} s"
            except BaseException:
                _end(process)
                raise
            _end(process)
        output = path.read_text(errors="replace")
        if wrong:
            print("\n".join(output.splitlines()[-25:]), flush=True)
        return output, wrong


def main(words: list[str]) -> int:
    cfg = load(GpuConfig, None, words)
    cfg.check()
    began, on_gpu = time.monotonic(), cfg.device == "auto"
    figures: Figures = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "torch": torch.__version__}
    figures |= {"python": platform.python_version(), "commit": _commit()}
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ)
        env["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiler")  # for all parts
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # the launcher's
        if not on_gpu:
            env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        bench = Bench(cfg, GPU if on_gpu else CPU, env, Path(folder), began + 60 * cfg.minutes - 5)
        for name in [name for name in PARTS if name in cfg.parts]:
            print(f"# {name}: {(bench.deadline - time.monotonic()):.0f} s left", flush=True)
            figures[name] = PARTS[name](bench)
    figures["minutes"] = round((time.monotonic() - began) / 60, 2)
    show(figures)
    print(json.dumps(figures))
    return int(any(figures[name].get("wrong") for name in cfg.parts))


def show(figures: Figures) -> None:
    """The table: a line for each figure."""
    for part, found in figures.items():
        for name, value in found.items() if isinstance(found, dict) else [("", found)]:
            print(f"{part:<10}{name:<58}{'-' if value is None else value:>20}")


# ---- the parts ------------------------------------------------------------------------------------------------------


def tests(bench: Bench) -> Figures:
    """How many of the tests passed, failed and were skipped."""
    report = bench.folder / "tests.xml"
    beside = str(min(4, os.cpu_count() or 1))  # test files, side by side
    words = ["-m", "pytest", "-q", "-n", beside, "--dist", "loadfile", "-p", "no:cacheprovider"]
    words += ["-m", bench.sizes.marked, f"--junitxml={report}", "tests"]
    _, wrong = bench.run(words, 0.45)
    if not report.is_file():
        return {"wrong": wrong}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, failed, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors", 0))
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped, **_if(wrong)}


def pretrain(bench: Bench) -> Figures:
    """ECGs per second of the command, share of peak FLOP/s and of waiting for data, of its last line."""
    size, data = bench.sizes, bench.folder / "shards"
    for words in (
        ["synth", f"output={bench.folder / 'recordings'}", f"patients={size.patients}"],
        ["build", "configs/shard/wfdb.yaml", f"input={bench.folder / 'recordings'}", f"output={data}",
         f"rate={size.rate}", f"workers={os.cpu_count()}", "split.train=0.9", "split.val=0", "split.test=0.1"],
    ):  # fmt: skip
        _, wrong = bench.run(["-m", "sharding", *words], 0.5)
        if wrong:
            return {"wrong": f"sharding {words[0]}: {wrong}"}
    run = bench.folder / "run"
    words = ["trainer/pretrain.py", "configs/pretrain/same_window.yaml", f"data.path={data}", f"run={run}",
             f"batch.global={size.global_batch}", f"steps={size.trained}", f"log.every={size.every}",
             "log.figure_every=0", "wandb.mode=disabled", "checkpoint.every=0",
             f"encoder.args={size.args}"]  # fmt: skip
    _, wrong = bench.run(words, 0.5)
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    timed = [row for row in rows if "samples_per_s" in row]
    if not timed:
        return {"wrong": wrong or "no line of metrics has a speed"}
    keys = ("samples_per_s", "mfu", "data_wait", "loss")
    return {**{key: _short(timed[-1][key]) for key in keys}, "batch": size.global_batch, **_if(wrong)}


def step(bench: Bench) -> Figures:
    """The step against that of the older commit, at a large batch, and of the first encoder at a small one."""
    size = bench.sizes
    found: Figures = {}
    for encoders, batch, share in ((size.encoders[:1], size.small, 0.3), (size.encoders, size.batch, 0.8)):
        words = [f"encoders=[{','.join(encoders)}]", f"args={size.args}", f"batch={batch}", f"samples=[{size.samples}]"]
        words += [f"steps={size.steps}", f"against={bench.cfg.against}"]
        output, wrong = bench.run(["-m", "benchmarks.step", *words], share)
        found |= _last_json(output) | _if(wrong)
    found.pop("device", None)
    return found


def paper(bench: Bench) -> Figures:
    """The step against the published schedule and setting."""
    size = bench.sizes
    words = [f"encoders=[{size.encoders[0]}]", f"args={size.args}", f"batch={size.batch}", f"samples=[{size.samples}]"]
    words += [f"steps={size.steps}", f"paper_width={size.paper_width}", f"paper_batch={size.paper_batch}"]
    output, wrong = bench.run(["-m", "benchmarks.step", *words])
    found = _last_json(output)
    found.pop("device", None)
    return found | _if(wrong)


PARTS: dict[str, Callable[[Bench], Figures]] = {"tests": tests, "pretrain": pretrain, "step": step, "paper": paper}


def _if(wrong: str) -> Figures:
    return {"wrong": wrong} if wrong else {}


def _last_json(output: str) -> Figures:
    """The last line that is a JSON object; empty if none is."""
    for line in reversed(output.splitlines()):
        if re.fullmatch(r"\{.*\}", line):
            with contextlib.suppress(ValueError):
                found: Figures = json.loads(line)
                return found
    return {}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    command(main)
