"""Jobs of the batch scripts, submitted to the Slurm of the tests, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "batch.global=8 encoder.args.width=16 projector.hidden=16 projector.out=8 masker.width=8 masker.depth=1 "
    "log.every=1 log.figure_every=0 checkpoint.every=0"
)


def python(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, timeout=120, capture_output=True)


def variables_of(home: Path = ROOT) -> dict[str, str]:
    """What the batch scripts are to know."""
    venv = Path(sys.executable).parent.parent
    return {"UMBRA_HOME": str(home), "UMBRA_VENV": str(venv), "UMBRA_MASTER_ADDR": "127.0.0.1"}


def submit(slurm: Cluster, cwd: Path, *words: str, home: Path = ROOT, **variables: str) -> str:
    return slurm.submit("--time=10", *words, cwd=cwd, **{**variables_of(home), **variables})


def log_of(cwd: Path, job: str) -> str:
    return "\n".join(path.read_text() for path in sorted(cwd.glob(f"umbra-*-{job}*.log")))


def wait_until(ready: Callable[[], bool], seconds: float, cwd: Path, job: str) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, f"waited {seconds} s in vain:\n{log_of(cwd, job)}"
        time.sleep(0.1)


def steps_of(run: Path) -> list[int]:
    """The steps in the whole lines of `metrics.jsonl`."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def committed(run: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/COMMITTED"))
