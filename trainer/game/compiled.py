"""Networks under `torch.compile`, with the same parameter names."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.game.batchnorm import batch_norms
from umbra.encoders.fused import prepare_compiler
from umbra.errors import UserError

AUTO, TRUE = "auto", "true"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
Backend = str | Callable[..., Any]


def wanted(
    compile: str,
    device: torch.device,
    zero: int,
    networks: Iterable[nn.Module],
    ranks: int,
    cache: Path,
    say: bool = True,
) -> bool:
    """Whether a run compiles its networks. `auto`: on GPUs where the compiler works (`say`: print it if it does
    not); not with ZeRO 3, nor with batch norm on several ranks, which talk to each other inside a layer.

    What the compiler writes is kept in `cache`, unless TORCHINDUCTOR_CACHE_DIR names a folder. Raises `UserError` for
    `true` where nothing compiles.
    """
    alone = ranks == 1 or not any(batch_norms(network) for network in networks)
    if compile != TRUE and not (compile == AUTO and device.type == "cuda" and zero < 3 and alone):
        return False
    if _is_unset(os.environ.get(CACHE, "")):
        os.environ[CACHE] = str(cache.absolute())
    try:
        try_compiler(device)
    except UserError as error:
        if compile == TRUE:
            raise
        if say:
            print(f"# not compiled: {error}", flush=True)
        return False
    return True


def _is_unset(folder: str) -> bool:
    """Whether torch, which names a folder of its own in the environment when it is imported, did so and no one else."""
    return not folder or folder.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_"))


def compile_networks(networks: Iterable[Any], say: bool = False, backend: Backend = "inductor") -> None:
    """Compiles each network's `whole`, the forward pass of one chunk, in place; compilation happens at the first calls.

    Only training passes are compiled; others, such as held-out losses, run as they are. Every shape is compiled for
    itself, never for a size that is a symbol: a training run has one shape, or two with an uneven last chunk. `say`:
    print what is compiled and how long its first pass took.

    Only that method is replaced, on the instance: parameter names, checkpoints and exports do not change, and
    `in_chunks` is not compiled. Do not copy a compiled network.
    """
    prepare_compiler()
    for network in networks:
        network.whole = _in_training(network, network.whole, say, backend)


def is_compiled(network: nn.Module) -> bool:
    """Whether `compile_networks` has replaced its forward pass."""
    return "whole" in vars(network)


def _in_training(
    network: nn.Module, plain: Callable[..., Tensor], say: bool, backend: Backend
) -> Callable[..., Tensor]:
    compiled = torch.compile(plain, dynamic=False, backend=backend)
    known: set[str] = set()

    def whole(*x: Tensor) -> Tensor:
        if not network.training or not torch.is_grad_enabled():
            return plain(*x)
        began, shape = time.perf_counter(), " + ".join(str(list(part.shape)) for part in x)
        out: Tensor = compiled(*x)
        if shape not in known:
            known.add(shape)
            if say:
                took = time.perf_counter() - began
                print(f"# compiled {type(network).__name__} for {shape}: first pass {took:.0f} s", flush=True)
        return out

    return whole


def try_compiler(device: torch.device) -> None:
    """Compiles a trivial function. Raises `UserError` with the backend's reason if that fails (no C++ compiler ...)."""
    try:
        torch.compile(lambda x: x.sin() + 1, options={"fx_graph_cache": False})(torch.ones(8, device=device))
    except Exception as error:
        raise UserError(
            f"compile=true does not work on this machine ({_reason(error)}): install a C++ compiler (Debian: apt "
            "install g++ python3-dev) or name it in CXX, or use compile=false"
        ) from error


def _reason(error: Exception) -> str:
    """The first line that says more than which backend failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("backend=")), type(error).__name__)[:200]
