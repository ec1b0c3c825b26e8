"""Networks under `torch.compile`: the same parameters under the same names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from umbra.errors import UserError


def compile_networks(networks: Iterable[Any], device: torch.device) -> None:
    """Compiles what each network does with one chunk of a batch, its `whole`, in place; done at the first calls.

    Only that method is replaced, on the instance: names of parameters, checkpoints and exports stay as they are, and
    `in_chunks` stays outside. A network compiled so is not to be copied. Raises `UserError` where nothing compiles.
    """
    try_compiler(device)
    for network in networks:
        network.whole = torch.compile(network.whole)


def try_compiler(device: torch.device) -> None:
    """Compiles a trifle. Raises `UserError` with the backend's reason where this cannot work (no C++ compiler ...)."""
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
