"""Process group: initialisation, rank arithmetic, and the collectives in use."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from trainer import heartbeat, threads
from umbra.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


def collective(function: Callable[P, R]) -> Callable[P, R]:
    """A function in which each process waits for the others, and is seen to."""

    @functools.wraps(function)
    def marked(*args: P.args, **kwargs: P.kwargs) -> R:
        with heartbeat.waiting():
            return function(*args, **kwargs)

    return marked


@dataclass(frozen=True)
class World:
    """This process: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def initialise(timeout_s: float = 600) -> World:
    """Joins the process group of the launcher (deepspeed, torchrun or srun); without a launcher, a group of one.

    `timeout_s`: of a collective, should `trainer.watchdog` not have ended the process before.
    Raises `UserError` where the processes cannot meet because the port is taken.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500" if int(os.environ["WORLD_SIZE"]) > 1 else "0")
    _check_port()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"  # which DeepSpeed follows
    import deepspeed

    deepspeed.logger.setLevel("ERROR")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # avoids compiling a C++ extension at the first start
        )
    with heartbeat.waiting():
        deepspeed.init_distributed(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
        )
    host = os.uname().nodename
    threads.settle([cores for where, cores in gather((host, os.sched_getaffinity(0))) if where == host])
    return World(dist.get_rank(), dist.get_world_size(), device)


def _check_port() -> None:
    """The first process opens the port, unless it is torchrun's own."""
    port = int(os.environ["MASTER_PORT"])
    if port == 0 or launched_rank() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(
            f"port {port}, at which the processes of the run meet, cannot be opened ({why}): another run may "
            "have it; choose another, deepspeed --master_port N, or MASTER_PORT=N without that launcher"
        ) from error


def launched_size() -> int:
    """The number of processes that the launcher started; known before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """This process's rank by its launcher; known before the processes have joined."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def size() -> int:
    """The world size (1 without a process group)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@collective
def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def finalise() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Exits with the exit code of the block, skipping the interpreter's shutdown: a process group that an engine still
    holds may abort during it, and the launcher then kills ranks that are still writing."""
    try:
        yield
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()  # among others, ends W&B's service
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@collective
def mean_over_ranks(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The mean over ranks of scalar tensors, in one collective and one host read."""
    stacked = torch.stack([v.detach().float() for v in values.values()])
    if dist.is_initialized():
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return dict(zip(values, stacked.tolist()))


@collective
def max_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(stacked, op=dist.ReduceOp.MAX)
    return dict(zip(values, stacked.tolist()))


@collective
def add_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place, on the device."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


@collective
def largest_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The maximum over ranks, in place, on the device."""
    if dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


@collective
def gather_tensors(local: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all ranks, in rank order; all have the same shape."""
    if not dist.is_initialized():
        return [local]
    gathered = [torch.empty_like(local) for _ in range(size())]
    dist.all_gather(gathered, local.contiguous())
    return gathered


@collective
def scatter_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """Reduce-scatter: rank n gets part n, summed over ranks."""
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts)
    return own


@collective
def gather(value: object) -> list[Any]:
    """The values of all ranks, on every rank."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def ranks_of_machine(world: World) -> tuple[int, ...]:
    """The ranks on this machine, which are consecutive.

    Raises `UserError` if they are not.
    """
    local = gather(local_rank())
    first = world.rank - local[world.rank]
    after = [rank for rank in range(world.rank + 1, world.size) if local[rank] == 0]
    ranks = range(first, min([*after, world.size]))
    if first < 0 or [local[rank] for rank in ranks] != list(range(len(ranks))):
        raise UserError("the ranks of a machine are not consecutive: start them with a block distribution")
    return tuple(ranks)


@collective
def agree(value: object) -> object:
    """Rank 0's value on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]
