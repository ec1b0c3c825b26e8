"""Several processes that share a study on one machine, each with its share of the cores and GPUs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence

from trainer.study.config import StudyConfig
from trainer.study.trial import visible_gpus
from trainer.threads import quota

PATIENCE = 90.0


def run_workers(config: StudyConfig, words: Sequence[str]) -> bool:
    """Runs the study's command line `words` in `config.workers` processes until all have ended; whether all did well.

    None outlives the call. What one that is killed leaves undone, the others do, or whoever comes next.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(config.workers):
            share = [f"part={config.part * config.workers + number}", f"parts={config.parts * config.workers}"]
            command = [sys.executable, "-m", "trainer.study", *words, "workers=1", *share]
            processes.append(subprocess.Popen(command, env=dict(os.environ) | _share(config.workers, number)))
        return all([process.wait() == 0 for process in processes])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _share(workers: int, number: int) -> dict[str, str]:
    """The variables of a worker's environment: its threads, unless `OMP_NUM_THREADS` is set, and its GPUs."""
    found = {}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = min(len(os.sched_getaffinity(0)), quota())
        found["OMP_NUM_THREADS"] = str(max(1, math.floor(cores / workers)))
    if gpus := visible_gpus():
        found["CUDA_VISIBLE_DEVICES"] = ",".join(slice_of(gpus, workers, number))
    return found


def slice_of(gpus: Sequence[str], workers: int, number: int) -> list[str]:
    """The GPUs of one worker: as many as for any other, or one that it shares where there are fewer than workers."""
    each = len(gpus) // workers
    return list(gpus[number * each : (number + 1) * each]) if each else [gpus[number % len(gpus)]]
