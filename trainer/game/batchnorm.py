"""Batch norm (Ioffe and Szegedy 2015) over the batches of all ranks, and its statistics for inference.

Encoders are built with torch's own batch norm, and checkpoints and exported encoders use its parameter names; only
pre-training replaces it (`over_all_ranks`). torch's SyncBatchNorm does the same, but not on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import distributed


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers of a module, in order."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


M = TypeVar("M", bound=nn.Module)


def over_all_ranks(module: M) -> M:
    """Replaces the batch norms of a module by `BatchNorm` with the same parameters and buffers, in place."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            made = BatchNorm(child.num_features, child.eps, child.momentum)
            made.weight, made.bias = child.weight, child.bias
            for buffer, value in child.named_buffers():
                setattr(made, buffer, value)
            setattr(module, name, made.train(child.training))
        else:
            over_all_ranks(child)
    return module


class BatchNorm(_BatchNorm):
    """[n, channels, ...] of any float type, normalised in training by mean and variance over the rows of all ranks.

    Result and gradients are those of torch's batch norm on the concatenated rows of all ranks; with one rank it is
    torch's. Statistics are fp32 or wider, also under autocast; the running ones are the same on all ranks. Every rank
    must run the same number of forward and backward passes. Parameter gradients are this rank's share, as usual: the
    engine averages them.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        count, mean, squares = merged(torch.stack(distributed.gather_tensors(moments(x.detach()))))
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (count - 1), self.momentum)
        y: Tensor = _Normalise.apply(x, self.weight, self.bias, count, mean, squares / count, self.eps)
        return y


def moments(x: Tensor) -> Tensor:
    """[n, channels, ...] -> [3, channels]: mean, sum of squared deviations from it, and count; fp32 or wider."""
    wide, rows = x.to(torch.promote_types(x.dtype, torch.float32)), _all_but_channels(x)
    mean = wide.mean(rows)
    squares = (wide - _as_channels(mean, x)).square_().sum(rows)  # torch.var_mean takes five times as long on a CPU
    return torch.stack([mean, squares, torch.full_like(mean, x.numel() // x.shape[1])])


def merged(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` [parts, 3, channels] -> (count, mean, sum of squared deviations) of all parts, each [channels].

    Combines the parts as in Chan et al. 1979, which loses no precision when the mean is far from 0.
    """
    means, squares, counts = parts.unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


@torch.no_grad()
def estimate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running mean and variance of each batch norm to those of its inputs over all `batches`.

    Each batch is normalised by its own statistics, as in training, so one pass suffices for all layers; what is stored
    is the mean and the (biased) variance over all batches together, not an average of the batches' values. Weights do
    not change; the module is left in eval mode.
    """
    norms = batch_norms(module)
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    module.eval()
    hooks = [norm.train().register_forward_pre_hook(partial(_note, seen)) for norm in norms]
    try:
        for batch in batches:
            module(batch)
    finally:
        module.eval()
        for hook in hooks:
            hook.remove()
    for norm in norms:
        count, mean, squares = merged(torch.stack(seen[norm]))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(squares / count)


def _note(seen: dict[nn.Module, list[Tensor]], norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    seen[norm].append(moments(given[0]).double())


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance depend on the x of all ranks."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, count: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, count, mean, (variance + eps).rsqrt())
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, count, mean, scale = ctx.saved_tensors
        rows, gradient = _all_but_channels(x), upstream.to(mean.dtype)
        normed = (x.to(mean.dtype) - _as_channels(mean, x)).mul_(_as_channels(scale, x))
        own = torch.stack([gradient.sum(rows), (gradient * normed).sum(rows)])
        total = distributed.add_over_ranks(own.clone())
        mean_gradient, mean_product = total / count
        to_x = normed.mul_(_as_channels(-mean_product, x)).sub_(_as_channels(mean_gradient, x)).add_(gradient)
        to_bias, to_weight = own.to(weight.dtype)
        return to_x.mul_(_as_channels(weight * scale, x)).to(x.dtype), to_weight, to_bias, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _as_channels(values: Tensor, x: Tensor) -> Tensor:
    """[channels], reshaped to broadcast over x."""
    return values.view(-1, *[1] * (x.ndim - 2))
