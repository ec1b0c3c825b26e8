"""The base class of encoder networks."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """[B, leads, samples], scaled -> [B, dim]. Rows are processed independently, without random numbers.

    Its parts are made in the order of the forward pass: layer-wise learning rates go by it.
    """

    dim: int
