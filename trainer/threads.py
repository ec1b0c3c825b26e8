"""How many threads a process computes with, and that they sleep while they wait for one another.

A thread that waits for the others of its step would spin, and keep them off their core if another program has the rest:
on a busy machine most of the time is then spent spinning. Sleeping costs a few microseconds a wait.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def sleep_while_waiting() -> None:
    """Sets `OMP_WAIT_POLICY=PASSIVE`, unless the user chose how threads wait; only before torch (libgomp) is loaded."""
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def settle(machine: Sequence[Collection[int]] = ()) -> None:
    """Sets torch's threads to the share of this process; `OMP_NUM_THREADS` is respected as it is.

    `machine`: the cores that each process of the job on this machine may run on (default: this process is alone).
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        own = os.sched_getaffinity(0)
        torch.set_num_threads(share(own, machine or [own], quota()))


def share(own: Collection[int], machine: Sequence[Collection[int]], limit: float = math.inf) -> int:
    """The threads of a process that may run on the cores `own`: each core counts once among the processes that may use
    it. `limit`: the cores' worth of time that the processes of the machine may use together."""
    cores = sum(1 / sum(core in other for other in machine) for core in own)
    return max(1, int(min(cores, limit / len(machine)) + 1e-9))


def quota(root: Path = CGROUP) -> float:
    """The cores' worth of time that a container's limit allows (infinite without one); cgroups version 2 and 1."""
    try:
        if (root / "cpu.max").is_file():
            most, period = (root / "cpu.max").read_text().split()
        else:
            most, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if most.strip() in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf
