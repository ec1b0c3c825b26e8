"""The base class of encoder networks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from umbra.errors import UserError


class Backbone(nn.Module):
    """[B, leads, samples], scaled -> [B, dim]. Rows are processed independently, without random numbers.

    Its parts are made in the order of the forward pass: layer-wise learning rates go by it. `any_length`: whether it
    takes ECGs of other lengths than that which it was built for.

    Trained under autocast, the weights of its linear layers and convolutions are given in autocast's type
    (`trainer/game/lowered.py`): a part that switches autocast off must cast them itself.
    """

    any_length: ClassVar[bool] = False
    dim: int

    def tokens(self, x: Tensor) -> Tensor:
        """[B, leads, samples], scaled -> [B, tokens, features], in the order of time: what `forward` pools.

        Raises `UserError` if the network has none.
        """
        raise UserError(f"pool='tokens': {type(self).__name__} has no tokens; use pool='mean' or pool=None")
