"""What every encoder network is: a module with the number of its features."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """[B, leads, samples] scaled -> [B, dim]. Rows are treated alone and no random numbers are drawn."""

    dim: int
