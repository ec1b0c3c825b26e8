"""Random masks on the scaled signal: hidden samples become 0, the lead's mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, integers, uniform


@dataclass(kw_only=True)
class BlockMask(View):
    """Hides exactly `round(coverage * samples)` samples, at least one and never all, in `blocks` segments that do not
    overlap.

    A segment lies entirely within the window, its start uniform over the positions where it fits: the edges are hidden
    less often than the middle. Several segments are about equally long and may touch. All leads share the mask, or each
    has its own (`per_lead`).
    """

    stage: ClassVar[str] = "mask"
    wrap: ClassVar[bool] = False
    coverage: float = 0.5
    per_lead: bool = False
    blocks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.coverage < 1, f"coverage must be between 0 and 1, not {self.coverage:g}")
        self.require(self.blocks >= 1, f"blocks must be at least 1, not {self.blocks}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return x.masked_fill(self.hidden(key, x.shape[1], x.shape[2]), 0)

    def hidden(self, key: Key, leads: int, samples: int) -> Tensor:
        """bool [B, leads or 1, samples], true where hidden."""
        lanes = leads if self.per_lead else 1
        total = min(max(round(self.coverage * samples), 1), samples - 1)
        place = torch.arange(samples, device=key.index.device)
        if self.wrap:
            place = (place - integers(key, f"{self.op}.turn", (lanes, 1), samples)) % samples
        gaps = integers(key, f"{self.op}.start", (lanes, self.blocks), samples - total + 1).sort(dim=-1).values
        hidden = torch.zeros(len(key.index), lanes, samples, dtype=torch.bool, device=place.device)
        before = 0
        for block in range(self.blocks):
            length = (total + block) // self.blocks
            start = gaps[:, :, block, None] + before
            hidden |= (place >= start) & (place < start + length)
            before += length
        return hidden


@dataclass(kw_only=True)
class TimeMask(BlockMask):
    """3KG's time mask (Gopal et al. 2021, arXiv 2106.04452): one segment per lead, half of the window.

    A segment that reaches the end of the window wraps around to its start, so that all samples are hidden equally
    often.
    """

    wrap: ClassVar[bool] = True
    per_lead: bool = True


@dataclass(kw_only=True)
class LeadDropout(View):
    """Hides each lead entirely with probability `p`, but never all leads."""

    stage: ClassVar[str] = "mask"
    p: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.p < 1, f"p must be at least 0 and below 1, not {self.p:g}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        drawn = uniform(key, f"{self.op}.lead", (x.shape[1],))
        hidden = (drawn < self.p) & (drawn < drawn.amax(1, keepdim=True))
        return x.masked_fill(hidden[..., None], 0)
