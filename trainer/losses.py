"""The two losses of the game: NT-Xent over all ranks and the paper's penalty on the masks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent (Chen et al. 2020, equation 1) of this rank's rows against the embeddings of all ranks.

    `z1`, `z2`: [B, D] embeddings of two views, any float type; computed in fp32 or wider. Each of the 2 B W embeddings
    is an anchor, its other view the positive, all others negatives. Returns the mean loss of this rank's 2 B anchors
    and
    the share of them whose positive is the nearest. The mean of the ranks' losses is the global loss, and its
    gradient, averaged over the ranks, is the true one: the gather sends gradients back.
    """
    dtype = torch.promote_types(z1.dtype, torch.float32)
    local = F.normalize(torch.cat([z1, z2]).to(dtype), dim=-1)
    everyone = _Gather.apply(local) if _world() > 1 else local
    n, start = len(local), _rank() * len(local)
    logits = local @ everyone.T / temperature
    anchors = torch.arange(n, device=logits.device)
    logits = logits.index_put((anchors, start + anchors), torch.full_like(logits[:, 0], -math.inf))
    positives = start + (anchors + n // 2) % n
    loss = F.cross_entropy(logits, positives)
    accuracy = (logits.detach().argmax(1) == positives).float().mean()
    return loss, accuracy


def paper_penalty(masks: Tensor, alpha: float, ratio: float) -> Tensor:
    """alpha * sum over N, mean over the batch, of 1 / sin(pi R c), c the mean of the raw mask (Bo et al. 2022).

    `masks`: [B, N, T] in (0, 1); `ratio` R in (0, 1]. Its minimum is at c = 0.5 / R.
    """
    coverage = masks.float().mean(-1)
    return alpha * (1 / (torch.sin(math.pi * ratio * coverage) + 1e-10)).mean(0).sum()


class _Gather(torch.autograd.Function):
    """[n, D] of every rank -> [W n, D]; the backward sums the gradients of all ranks and hands each its own."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        gathered = [torch.empty_like(local) for _ in range(_world())]
        dist.all_gather(gathered, local.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(_world())[_rank()]


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
