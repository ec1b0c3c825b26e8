"""Layer-wise learning rates: the parameter groups of an encoder with a head, for AdamW.

The head learns at the full rate, the last layer of the encoder at `decay` times that, the one below at `decay` squared,
and so on (Howard and Ruder 2018, arXiv:1801.06146; by layer as in Clark et al. 2020, arXiv:2003.10555).
"""

from __future__ import annotations

from typing import Any

from torch import nn


def layers(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the input to the output.

    A layer is a child of the backbone with parameters, in the order in which they were made, which is that of the
    forward pass. A `Sequential` of which every part has parameters is a row of layers, such as the blocks of a ResNet
    or of a ViT. Parameters of the backbone itself belong to the first layer.
    """
    found = [list(part.parameters()) for child in backbone.children() for part in _parts(child)]
    found = [layer for layer in found if layer] or [[]]
    found[0] = [*backbone.parameters(recurse=False), *found[0]]
    seen: set[nn.Parameter] = set()
    return [[p for p in layer if not (p in seen or seen.add(p))] for layer in found]  # type: ignore[func-returns-value]


def _parts(module: nn.Module) -> list[nn.Module]:
    parts = list(module) if isinstance(module, nn.Sequential) else []
    return parts if parts and all(any(True for _ in part.parameters()) for part in parts) else [module]


def parameter_groups(
    backbone: nn.Module, head: nn.Module, lr: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups: `params`, `lr`, and `weight_decay`, which is 0 for biases and for the scales and shifts of norms.

    Parameters of the same rate and weight decay are in one group. The parameters of layer i (from 0) of n learn at
    `lr * decay ** (n - i)`, those of the head at `lr`.
    """
    stacked = [*layers(backbone), list(head.parameters())]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for height, layer in enumerate(reversed(stacked)):
        for parameter in layer:
            key = (lr * decay**height, weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": shrink} for (rate, shrink), params in groups.items()]
