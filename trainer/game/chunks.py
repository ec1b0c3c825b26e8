"""Processes a batch that is too large for the device in chunks, with the same result and gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(forward: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """`forward(x)`, computed for `rows` of the first axis at a time (0: all at once).

    Activations are not kept: the backward pass recomputes them, one chunk at a time, as in GradCache (Gao et al. 2021,
    arXiv 2101.06983), at the cost of one more forward pass. `forward` must treat rows independently and draw no random
    numbers. Each parameter's gradient is still reduced once per backward pass, so this works under all ZeRO stages.
    """
    if not rows or len(x) <= rows:
        return forward(x)
    if not torch.is_grad_enabled():
        return torch.cat([forward(part) for part in x.split(rows)])
    parts = [checkpoint(forward, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(rows)]
    return torch.cat(parts)
