"""Layers on activations [B, C, 1, L], whose layout in memory is chosen in one place, for the device.

Names and shapes of parameters are those of torch's one-dimensional layers. Under autocast activations stay in its type:
norms take their mean and variance in fp32 but read and write what the convolutions do.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbra.encoders import fused


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last, in which GPUs convolve; channels first on CPUs, where torch's group norm of channels-last tensors
    rounds more (its variance is a difference of means)."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def laid_out(x: Tensor) -> Tensor:
    """Signals [B, C, L] -> [B, C, 1, L] in the layout of the device and the type that autocast computes in.

    The layers below keep the layout that they are given, and their result does not depend on it. A graph that is
    exported for other runtimes stays [B, C, L], which they take too: in two dimensions its length would not stay free.
    """
    if torch.compiler.is_exporting():
        return x
    return x.unsqueeze(2).to(dtype=_computed_in(x), memory_format=memory_format(x.device))


def joined(views: Sequence[Tensor]) -> Tensor:
    """Signals [B, C, L] of each view as one batch; compiled, in the type that autocast computes in, so that gradients
    are of the views that want one, and nothing is copied as it is."""
    if len(views) == 1:
        return views[0]
    return torch.cat([view.to(_computed_in(view)) if _fuses() else view for view in views])


def _computed_in(x: Tensor) -> torch.dtype:
    """The type that autocast computes in with signals."""
    lowered = _autocasts(x.device) and x.dtype == torch.float32
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype


class Conv(nn.Conv1d):
    """[B, C, 1, L] -> [B, out, 1, L']; a tensor [B, C, L] is convolved as torch's layer does."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return super().forward(x)
        assert not isinstance(self.padding, str)
        stride, padding, dilation = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return F.conv2d(x, self.weight.unsqueeze(2), self.bias, stride, padding, dilation, self.groups)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) of [B, C, ...], in the type of its input, with statistics in fp32 or wider.

    Compiled, it is mean, variance and arithmetic, which fuse with what follows; else torch's one operator.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _fuses():
            with as_stored(x):
                return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return fused.affine(x, *self._tables(x))

    def then_relu(self, x: Tensor) -> Tensor:
        """ReLU of the norm, where it is compiled."""
        return fused.affine_relu(x, *self._tables(x))

    def then_relu_and_pool(self, x: Tensor) -> Tensor:
        """Those maxima of `MaxPool` besides."""
        return fused.affine_relu_pool(x, *self._tables(x))

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The factor and the term of each channel, `[B, C]` in fp32: so are the sums of the backward."""
        variance, mean = fused.moments(x, self.num_groups)
        scale = (variance + self.eps).rsqrt()[:, :, None] * self.weight.unflatten(0, (self.num_groups, -1))
        return scale.flatten(1), self.bias - (mean[:, :, None] * scale).flatten(1)


class MaxPool(nn.MaxPool2d):
    """Maxima of 3 samples, every second: [B, C, 1, L] -> [B, C, 1, (L + 1) // 2]."""

    def __init__(self) -> None:
        super().__init__((1, 3), stride=(1, 2), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return fused.max_pool(x) if _fuses() and x.ndim == 4 else super().forward(x)


class Layers(nn.Sequential):
    """One layer after the other; compiled, a group norm, the ReLU after it and the pool after that are one."""

    def forward(self, x: Tensor) -> Tensor:
        if not _fuses():
            return super().forward(x)
        layers = self.flat()
        while layers:
            count, layer = _first(layers)
            x, layers = layer(x), layers[count:]
        return x

    def flat(self) -> list[nn.Module]:
        """Its layers, and those of rows within it."""
        found: list[nn.Module] = []
        for layer in self:
            found += layer.flat() if isinstance(layer, Layers) and not _is_watched(layer) else [layer]
        return found


def _first(layers: Sequence[nn.Module]) -> tuple[int, Callable[[Tensor], Tensor]]:
    """How many of the first layers are one, and that one."""
    first = layers[0]
    kinds = [type(layer) for layer in itertools.takewhile(lambda layer: not _is_watched(layer), layers[:3])]
    if isinstance(first, GroupNorm) and kinds == [GroupNorm, nn.ReLU, MaxPool]:
        return 3, first.then_relu_and_pool
    if isinstance(first, GroupNorm) and kinds[:2] == [GroupNorm, nn.ReLU]:
        return 2, first.then_relu
    return 1, first


def _is_watched(layer: nn.Module) -> bool:
    """Whether a user asks to see what goes through it."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y of one shape: the end of a residual block."""
    return fused.added(x, y) if _fuses() else x + y


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016) of the last axis, in the type of its input, with statistics in fp32 or wider."""

    def forward(self, x: Tensor) -> Tensor:
        if not _fuses():
            with as_stored(x):
                return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return (_standardised(fused.wide(x), self.eps) * self.weight + self.bias).to(x.dtype)


def _fuses() -> bool:
    """Whether arithmetic becomes few kernels: under torch.compile, not when a graph is exported for other runtimes."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _standardised(x: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, [-1], correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def as_stored(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast, which on GPUs turns the input of norms and other operators into fp32: twice the bytes to move."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x.device) else contextlib.nullcontext()


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
