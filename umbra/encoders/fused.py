"""What layers compute where a network is compiled, so that few kernels come of it and each reads little.

A norm is a factor and a term a channel, `[B, C]` in fp32. The backward passes are written out: the compiler's own would
compute means again, keep fp32 copies of activations, and read outputs where inputs suffice. All of them take and give
the type of the activations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Biased variance and mean `[B, groups]` in fp32 of `[B, C, 1, L]`."""
    variance, mean = _Moments.apply(wide(x).unflatten(1, (groups, -1)))
    return variance, mean


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`[B, C, 1, L]` times `scale` plus `shift`, both `[B, C]`."""
    return (wide(x) * _beside(scale, x) + _beside(shift, x)).to(x.dtype)


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU of `affine`."""
    out: Tensor = _AffineReLU.apply(x, scale, shift)
    return out


def affine_relu_pool(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`max_pool` of `affine_relu`, which is never in memory."""
    out: Tensor = _AffineReLUPool.apply(x, scale, shift)
    return out


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y of one shape."""
    out: Tensor = _Added.apply(x, y)
    return out


def max_pool(x: Tensor) -> Tensor:
    """Maxima of 3 samples, every second, as `torch.nn.MaxPool2d((1, 3), (1, 2), (0, 1))`."""
    out: Tensor = _MaxPool.apply(x)
    return out


def wide(x: Tensor) -> Tensor:
    """In fp32, or as wide as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Moments(torch.autograd.Function):
    """The backward uses the mean of the forward, where torch's own reads the input once more for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, list(range(2, x.ndim)), correction=0)
        ctx.save_for_backward(x, mean)
        return variance, mean

    @staticmethod
    def backward(ctx: Any, of_variance: Tensor, of_mean: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = math.prod(x.shape[2:])
        factor = of_variance * (2 / count)
        return x * _beside(factor, x) + _beside(of_mean / count - factor * mean, x)


class _AffineReLU(torch.autograd.Function):
    """The backward finds out again from the input what was positive, since it reads the input in any case."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        return affine(x, scale, shift).relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, shift = ctx.saved_tensors
        scale, shift = _stored(scale), _stored(shift)
        through = wide(torch.where(affine(x, scale, shift) <= 0, 0, gradient))
        axes = list(range(2, x.ndim))
        return (through * _beside(scale, x)).to(x.dtype), (through * wide(x)).sum(axes), through.sum(axes)


class _Added(torch.autograd.Function):
    """The gradient, which both terms need, is computed once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = _stored(gradient)
        return gradient, gradient


class _MaxPool(torch.autograd.Function):
    """Each sample gathers its gradient from the two maxima that it may be. Torch's compiled backward (2.13) scatters:
    it adds in fp32 buffers, and on GPUs, by its code, in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        left, middle, right = _windows(x, -torch.inf)
        return torch.maximum(torch.maximum(left, middle), right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _stored(_from_maxima(x, gradient))


class _AffineReLUPool(torch.autograd.Function):
    """The backward computes the samples again from the input, and sums over the maxima: over half as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        scale, shift = _stored(scale), _stored(shift)  # saved so: of others the backward would read more
        left, middle, right = _windows(affine(x, scale, shift).relu(), -torch.inf)
        out = torch.maximum(torch.maximum(left, middle), right)
        ctx.save_for_backward(x, scale, shift, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("no autograd formula for second derivatives")
        x, scale, shift, out = ctx.saved_tensors
        scale, shift, axes = _stored(scale), _stored(shift), list(range(2, x.ndim))
        linear = affine(x, scale, shift)
        left, middle, right = _windows(linear.relu(), -torch.inf)
        first, second, third = _windows(x, 0)
        chosen = torch.where(_beats(middle, left), second, first)
        chosen = torch.where(_beats(right, torch.maximum(left, middle)), third, chosen)
        through = wide(torch.where(out <= 0, 0, gradient))
        of_x = wide(torch.where(linear <= 0, 0, _from_maxima(linear.relu(), gradient))) * _beside(scale, x)
        return of_x.to(x.dtype), (through * wide(chosen)).sum(axes), through.sum(axes)


def _windows(x: Tensor, beyond: float) -> tuple[Tensor, Tensor, Tensor]:
    """The left, middle and right samples of the windows of a pool, `[..., (L + 1) // 2]`; `beyond` the ends."""
    padded = F.pad(x, (1, x.shape[-1] % 2), value=beyond)
    return padded[..., :-1:2], padded[..., 1::2], padded[..., 2::2]


def _beats(later: Tensor, earlier: Tensor) -> Tensor:
    """Whether the later sample is the maximum of the two: of equal ones the earlier is, NaN counts as more."""
    return (later > earlier) | later.isnan()


def _from_maxima(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by x, `[..., L]`, of its maxima: an even sample is the middle of one window, an odd one the right of
    a window and the left of the next."""
    length = x.shape[-1]
    place = torch.arange(length, device=x.device)
    odd = place % 2 == 1
    padded = F.pad(x, (2, 2), value=-torch.inf)
    before2, before, after, after2 = (padded[..., start : start + length] for start in (0, 1, 3, 4))
    over_before, under_after = _beats(x, before) | (place == 0), ~_beats(after, x)  # before the first is no sample
    own = over_before & torch.where(odd, _beats(x, before2), under_after)
    of_next = odd & under_after & ~_beats(after2, x)
    next_gradient = F.pad(gradient[..., 1:], (0, 1))
    found = torch.where(own, _twice(gradient)[..., :length], 0)
    return found + torch.where(of_next, _twice(next_gradient)[..., :length], 0)


def _beside(table: Tensor, x: Tensor) -> Tensor:
    """`[B, C]` in a shape that goes beside `[B, C, ...]`."""
    return table.view(*table.shape, *[1] * (x.ndim - 2))


def _twice(x: Tensor) -> Tensor:
    """Each sample twice."""
    return x.unsqueeze(-1).expand(*x.shape, 2).flatten(-2)


# ---- where a value is written to memory, once, in its own type -------------------------------------------------------

_store: Any = None  # the operator, as soon as the compiler knows it


def prepare_compiler() -> None:
    """Tells torch's compiler the operator `umbra::stored`, which marks where a value is written: left alone, it
    computes a value that several kernels read again in each, or writes its fp32 form. And lets it keep graphs with
    functions such as these in its cache, whose keys hold their operators. Without this the functions compile all the
    same.
    """
    global _store
    if _store is not None:
        return
    from torch._functorch import config
    from torch._inductor.lowering import register_lowering

    if hasattr(config, "autograd_cache_allow_custom_autograd_functions"):
        config.autograd_cache_allow_custom_autograd_functions = True
    operator = torch.library.custom_op("umbra::stored", _copy, mutates_args=())
    operator.register_fake(torch.empty_like)
    register_lowering(torch.ops.umbra.stored.default, type_promotion_kind=None)(_written)
    _store = torch.ops.umbra.stored.default


def _copy(x: Tensor) -> Tensor:
    return x.clone()


def _written(box: Any) -> Any:
    """The compiler's form of the operator: no kernel, no copy."""
    box.realize()
    return box


def _stored(x: Tensor) -> Tensor:
    out: Tensor = x if _store is None else _store(x)
    return out
