"""Starts the real DeepSpeed launcher (or one process) with a time limit, a free port and one thread a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(device: str = "cpu") -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}  # torch sets it when it compiles
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "DS_ACCELERATOR": device}


def start(words: list[str], processes: int = 0, device: str = "cpu") -> subprocess.Popen[str]:
    """`processes` 0: plain Python; else under `deepspeed --num_gpus processes`, on CPUs or (`cuda`) on GPUs."""
    launcher = ["deepspeed", "--num_gpus", str(processes), "--master_port", str(free_port())]
    head = launcher if processes else [sys.executable]
    return subprocess.Popen(
        [*head, *words], cwd=ROOT, env=environment(device), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    """(exit code, output); the whole group is killed when the time is over."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"no end within {seconds} s:\n{output[-4000:]}") from None
    return process.returncode, output


def launch(words: list[str], processes: int = 0, seconds: float = 240, device: str = "cpu") -> tuple[int, str]:
    return finish(start(words, processes, device), seconds)
