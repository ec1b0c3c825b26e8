"""Networks under `torch.compile`, with the same parameter names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from umbra.errors import UserError


def compile_networks(networks: Iterable[Any], device: torch.device) -> None:
    """Compiles each network's `whole`, the forward pass of one chunk, in place; compilation happens at the first calls.

    Only that method is replaced, on the instance: parameter names, checkpoints and exports do not change, and
    `in_chunks` is not compiled. Do not copy a compiled network. Raises `UserError` if nothing compiles here.
    """
    try_compiler(device)
    for network in networks:
        network.whole = torch.compile(network.whole)


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
