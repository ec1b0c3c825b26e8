"""Log-odds over time -> a soft mask of a given coverage, for the game and for random masks."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SPREAD = 1e-3


def softly(odds: Tensor, coverage: float, slope: float) -> Tensor:
    """sigmoid(slope (odds - threshold) / deviation) over the last axis [..., T]: 1 where hidden.

    The threshold is the (1 - `coverage`) quantile, the deviation that of the odds, both detached.
    """
    fixed = odds.detach()
    spread = fixed.std(-1, keepdim=True).clamp_min(LEAST_SPREAD)
    return torch.sigmoid(slope * (odds - quantile(fixed, 1 - coverage)) / spread)


def quantile(values: Tensor, share: float) -> Tensor:
    """The value that about `share` of the last axis is below, halfway between two values: [..., T] -> [..., 1].

    Equal values, such as the samples of one cell, are on the same side of it: `share` is rounded to whole cells, with
    at least one on each side unless all values are equal.
    """
    length = values.shape[-1]
    low = values.kthvalue(min(max(round(share * length), 1), length), -1, keepdim=True).values
    larger, smaller = values > low, values < low
    above = torch.where(larger, values, torch.inf).amin(-1, keepdim=True)
    below = torch.where(smaller, values, -torch.inf).amax(-1, keepdim=True)
    under, over = (side.sum(-1, keepdim=True) for side in (smaller, larger))
    down = (over == 0) | ((under > 0) & (share * length - under < length - over - share * length))
    near = torch.where(down, below, above)
    return torch.where((under == 0) & (over == 0), low, (low + near) / 2)
