"""A warning where an optimizer steps over the weights of an encoder that gave it no gradients.

In eval mode an encoder's features carry none. A training loop that forgets `train()` would train the head alone and
never know: the loss falls all the same.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

_networks: WeakSet[nn.Module] = WeakSet()  # not parameters: their == is no truth value
_warned: WeakSet[nn.Module] = WeakSet()
_hook: Any = None


def note(network: nn.Module) -> None:
    """Remembers that features of `network` were given without gradients where a user could have wanted some."""
    global _hook
    if torch.compiler.is_compiling() or network in _warned:
        return
    _networks.add(network)
    if _hook is None:
        _hook = register_optimizer_step_post_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Warns once of each network of which the optimizer holds weights to be trained, none of which has a gradient."""
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for network in list(_networks):
        weights = [weight for weight in network.parameters() if weight.requires_grad and id(weight) in held]
        if not weights:
            continue
        _networks.discard(network)
        if all(weight.grad is None for weight in weights):
            _warned.add(network)
            warnings.warn(
                "the optimizer has weights of an encoder in eval mode, whose features carry no gradients, so that the "
                "encoder is not trained: call train(), or encoder.requires_grad_() to train it in eval mode, or leave "
                "its weights out of the optimizer",
                stacklevel=3,
            )
