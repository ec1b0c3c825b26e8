"""A random mask in the cells of the game, with a masker's soft edges and coverage but nothing learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, normal
from trainer.views.softly import softly


@dataclass(kw_only=True)
class CellMask(View):
    """Hides about `coverage` of the samples softly, in whole cells of `cell_s` seconds, at least one and never all.

    A random field over the cells stands for a masker's log-odds: normal, each cell with the correlation `neighbours` to
    the next (an autoregression of order 1: above 0 long stretches, a low-pass; below 0 cells that alternate). It is
    hidden by sigmoid(`slope` (field - threshold) / its standard deviation), as in the game (`trainer.views.softly`).
    Masks that the game learned on PTB-XL change between neighbours as those with `neighbours` -0.78 do
    (docs/methods.md). All leads share the mask, or each has its own (`per_lead`).
    """

    stage: ClassVar[str] = "mask"
    coverage: float = 0.5
    cell_s: float = 0.4
    slope: float = 20.0
    neighbours: float = 0.0
    per_lead: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.coverage < 1, f"coverage must be between 0 and 1, not {self.coverage:g}")
        self.require(self.cell_s > 0, f"cell_s must be above 0, not {self.cell_s:g}")
        self.require(self.slope > 0, f"slope must be above 0, not {self.slope:g}")
        self.require(-1 < self.neighbours < 1, f"neighbours must be between -1 and 1, not {self.neighbours:g}")

    def check_signal(self, samples: int, rate: float) -> None:
        seconds = samples / rate
        self.require(round(self.cell_s * rate) < samples, f"cell_s={self.cell_s:g} leaves one cell in {seconds:g} s")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return x * (1 - self.hidden(key, x.shape[1], x.shape[2], rate)).to(x.dtype)

    def hidden(self, key: Key, leads: int, samples: int, rate: float) -> Tensor:
        """float32 [B, leads or 1, samples], 1 where hidden. In float64 until its end: the same in any batch."""
        hop = max(1, round(self.cell_s * rate))
        cells = -(-samples // hop)
        field = self.field(key, leads if self.per_lead else 1, cells).repeat_interleave(hop, -1)[..., :samples]
        return softly(field, self.coverage, self.slope).to(torch.float32)

    def field(self, key: Key, lanes: int, cells: int) -> Tensor:
        """float64 [B, lanes, cells], normal, neighbours correlated."""
        drawn = normal(key, self.op, (lanes, cells)).double()
        steps = [drawn[..., 0]]
        for cell in range(1, cells):
            steps.append(self.neighbours * steps[-1] + math.sqrt(1 - self.neighbours**2) * drawn[..., cell])
        return torch.stack(steps, -1)
