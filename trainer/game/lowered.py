"""The weights of a network in the type that autocast computes in, all by one operator of many tensors.

Autocast casts each weight by an operator of its own, in the forward pass and again in the backward: on a GPU that is
two launches a weight, of a few bytes each. The backward also brings gradients into the layout of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.game.compiled import is_compiled
from umbra.encoders import layout
from umbra.encoders.layout import Conv, GroupNorm, LayerNorm

BY_AUTOCAST = (nn.Linear, nn.Conv1d, Conv)  # exactly these classes: others may use their weights in fp32
BY_LAYER = (GroupNorm, LayerNorm)  # which cast them themselves, but not in a compiled pass

Place = tuple[nn.Module, str]


def lowered(network: Any) -> Callable[..., Tensor]:
    """`network.whole`, with those weights cast beforehand that would be cast one by one, those of convolutions into the
    layout of the activations: with the same result and, in one layout, the same gradients to the last bit.

    Only where gradients are computed under autocast. ZeRO 3 gathers weights layer by layer, and they are cast there.
    """

    def whole(*x: Tensor) -> Tensor:
        device = x[0].device.type
        if not torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
            return network.whole(*x)
        places = list(_places(network, BY_AUTOCAST if is_compiled(network) else BY_AUTOCAST + BY_LAYER))
        weights = [module.get_parameter(name) for module, name in places]
        if not weights or any(w.dtype != torch.float32 or hasattr(w, "ds_id") for w in weights):
            return network.whole(*x)
        convolved = [type(module) is Conv and w.ndim == 3 for (module, _), w in zip(places, weights)]
        last = [c and layout.memory_format(x[0].device) == torch.channels_last for c in convolved]
        with _in_place(places, _Cast.apply(torch.get_autocast_dtype(device), last, *weights)):
            return network.whole(*x)

    return whole


def _places(network: nn.Module, classes: Sequence[type]) -> Iterator[Place]:
    for module in network.modules():
        if type(module) in classes:
            yield from ((module, name) for name, weight in module._parameters.items() if weight is not None)


@contextlib.contextmanager
def _in_place(places: Sequence[Place], weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block, the modules have these weights in place of their parameters."""
    kept = [module._parameters[name] for module, name in places]
    try:
        for (module, name), weight in zip(places, weights):
            module._parameters[name] = weight  # type: ignore[assignment]
        yield
    finally:
        for (module, name), parameter in zip(places, kept):
            module._parameters[name] = parameter


class _Cast(torch.autograd.Function):
    """(type, whether channels are to be last, weights) -> the weights in that type. Gradients come back in the type and
    the layout of the weights."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, last: Sequence[bool], *weights: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        return tuple(_copied([*weights], [_room(w, dtype, channels) for w, channels in zip(weights, last)]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        wide = _copied([*found.values()], [torch.empty_like(ctx.weights[i]) for i in found])
        by_place = dict(zip(found, wide))
        return None, None, *(by_place.get(i) for i in range(len(gradients)))


def _room(weight: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Memory for a weight; of a convolution [out, in, k], in the order that those of channels-last tensors want."""
    if not channels_last or weight.shape[-1] == 1:  # of one sample both orders are one
        return torch.empty_like(weight, dtype=dtype)
    return torch.empty_like(weight.mT, dtype=dtype, memory_format=torch.contiguous_format).mT


def _copied(source: list[Tensor], into: list[Tensor]) -> list[Tensor]:
    """Those of one layout on both sides apart: of only these, an operator of many tensors is few launches on a GPU."""
    for alike in (True, False):
        pairs = [(to, of) for to, of in zip(into, source) if (to.stride() == of.stride()) is alike]
        if pairs:
            torch._foreach_copy_([to for to, _ in pairs], [of for _, of in pairs])
    return into
