"""The two losses of the game: NT-Xent over all ranks and the paper's penalty on the masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer import distributed

TILE = 2048  # anchors per tile, and embeddings that they are compared with: 16 MiB of fp32


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float | Tensor, patients: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NT-Xent (Chen et al. 2020, equation 1) of this rank's rows against the embeddings of all ranks.

    `z1`, `z2`: [B, D] embeddings of two views, any float type; computed in fp32 or wider, also under autocast. Each of
    the 2 B W embeddings (W: world size) is an anchor, its other view the positive, all others negatives; with
    `patients`, int64 [B], only those of other patients. `temperature` may be a learned tensor. Returns the mean loss of
    this rank's 2 B anchors and the fraction of them whose positive is closer than every negative. The mean of the
    ranks' losses is the global loss, and the gradient averaged over the ranks is its gradient: the gather is
    differentiable.
    """
    with torch.autocast(z1.device.type, enabled=False):
        dtype = torch.promote_types(z1.dtype, torch.float32)
        local = F.normalize(torch.cat([z1, z2]).to(dtype), dim=-1)
        start = distributed.rank() * len(local)
        if patients is None:
            patients = torch.arange(start, start + len(z1), device=local.device)
        everyone, ids = local, torch.cat([patients, patients])
        all_ids = ids
        if distributed.size() > 1:
            everyone, all_ids = Gather.apply(local), torch.cat(distributed.gather_tensors(ids))
        losses, hits = anchors(local, everyone, ids, all_ids, start, temperature)
    return losses.mean(), hits.float().mean()


def anchors(
    local: Tensor, everyone: Tensor, ids: Tensor, all_ids: Tensor, start: int, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Each anchor's loss [n], and whether its positive is closer than every negative [n].

    `local` [n, D] are rows `start` to `start + n` of `everyone` [M, D], all of unit length; the positive of row i is
    row i + n / 2 of `local`, modulo n. `ids` [n], `all_ids` [M] int64: embeddings with the same id are not negatives of
    each other. The [n, M] similarities are computed tile by tile, and recomputed in the backward: memory is O(n + M).
    """
    n = len(local)
    positives = start + (torch.arange(n, device=local.device) + n // 2) % n
    if not isinstance(temperature, Tensor):
        temperature = local.new_full((), temperature)  # torch.tensor would copy from the host and synchronise
    scale = 1 / temperature.to(local.dtype)
    losses, hits = _Anchors.apply(local, everyone, scale, ids, all_ids, positives)
    return losses, hits


def paper_penalty(masks: Tensor, alpha: float, ratio: float) -> Tensor:
    """alpha * sum over N, mean over the batch, of 1 / sin(pi R c), c the mean of the raw mask (Bo et al. 2022).

    `masks`: [B, N, T] in (0, 1); `ratio` R in (0, 1]. Its minimum is at c = 0.5 / R. Near its poles, where rounding
    could flip the sign of the sine, it is constant.
    """
    coverage = masks.to(torch.promote_types(masks.dtype, torch.float32)).mean(-1)
    return alpha * (1 / torch.sin(math.pi * ratio * coverage).clamp_min(1e-6)).mean(0).sum()


class _Anchors(torch.autograd.Function):
    """Losses of the anchors by log-sum-exp over tiles; the backward recomputes the tiles.

    With P the softmax over positive and negatives, d loss_i / d logit_ij = P_ij, minus 1 at the positive.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, local: Tensor, everyone: Tensor, scale: Tensor, ids: Tensor, all_ids: Tensor, positives: Tensor
    ) -> tuple[Tensor, Tensor]:
        positive, nearest, total = (torch.full_like(local[:, 0], -math.inf) for _ in range(3))
        for rows in _tiles(len(local)):
            for columns in _tiles(len(everyone)):
                logits, own, _ = _tile(local, everyone, scale, ids, all_ids, positives, rows, columns)
                positive[rows] = torch.maximum(positive[rows], own)
                nearest[rows] = torch.maximum(nearest[rows], logits.amax(1))
                total[rows] = torch.logaddexp(total[rows], logits.logsumexp(1))
        total = torch.logaddexp(total, positive)
        hits = positive > nearest
        ctx.save_for_backward(local, everyone, scale, ids, all_ids, positives, total)
        ctx.mark_non_differentiable(hits)
        return total - positive, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        local, everyone, scale, ids, all_ids, positives, total = ctx.saved_tensors
        to_local, to_everyone = torch.zeros_like(local), torch.zeros_like(everyone)
        with torch.autocast(local.device.type, enabled=False):
            for rows in _tiles(len(local)):
                for columns in _tiles(len(everyone)):
                    logits, own, at = _tile(local, everyone, scale, ids, all_ids, positives, rows, columns)
                    gradient = logits.sub_(total[rows, None]).exp_()
                    here = torch.where(own.isneginf(), 0, torch.expm1(own - total[rows]))
                    gradient.scatter_add_(1, at[:, None], here[:, None]).mul_(upstream[rows, None])
                    to_local[rows].addmm_(gradient, everyone[columns])
                    to_everyone[columns].addmm_(gradient.T, local[rows])
        to_scale = (to_local * local).sum() if ctx.needs_input_grad[2] else None
        return to_local.mul_(scale), to_everyone.mul_(scale), to_scale, None, None, None


def _tile(
    local: Tensor,
    everyone: Tensor,
    scale: Tensor,
    ids: Tensor,
    all_ids: Tensor,
    positives: Tensor,
    rows: slice,
    columns: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the negatives (all else -inf), the positive's logit (-inf if it is in another tile) and its column."""
    logits = (local[rows] @ everyone[columns].T).mul_(scale)
    place = positives[rows] - columns.start
    at = place.clamp(0, logits.shape[1] - 1)
    own = torch.where(place == at, logits.gather(1, at[:, None])[:, 0], -math.inf)
    return logits.masked_fill_(ids[rows, None] == all_ids[columns], -math.inf), own, at


def _tiles(length: int) -> Iterator[slice]:
    return (slice(at, min(at + TILE, length)) for at in range(0, length, TILE))


class Gather(torch.autograd.Function):
    """[n, ...] of every rank -> [W n, ...]; the backward sums gradients over ranks and returns each rank its rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat(distributed.gather_tensors(local))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        parts = list(gradient.contiguous().chunk(distributed.size()))
        return distributed.scatter_sum(parts)
