"""Fewer leads: some leads of an ECG are hidden whole, as if they had not been recorded."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, integers, uniform
from umbra.leads import CANONICAL

# The sets of the PhysioNet/CinC Challenge 2021 (Reyna et al. 2021), and lead I alone, that of most wearables.
SUBSETS = {
    12: CANONICAL,
    6: ("I", "II", "III", "aVR", "aVL", "aVF"),
    4: ("I", "II", "III", "V2"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
    1: ("I",),
}


@dataclass(kw_only=True)
class LeadDrop(View):
    """With probability `p` an ECG keeps only some of its leads; the others become 0, the lead's mean.

    Without `subsets`, the number of leads that stay is uniform over `keep` to all but one, and which ones is uniform
    too. With `subsets`, numbers of leads among those of `SUBSETS`, one of these sets stays, each equally likely. A limb
    lead that would follow from I and II is hidden like any other. Raises `UserError` for a set that the data do not
    have.
    """

    stage: ClassVar[str] = "mask"
    p: float = 0.5
    keep: int = 1
    subsets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.p <= 1, f"p must be 0 to 1, not {self.p:g}")
        self.require(
            1 <= self.keep < len(self.leads) or bool(self.subsets),
            f"keep must be at least 1 and below the number of leads ({len(self.leads)}), not {self.keep}",
        )
        self.require(self.keep == 1 or not self.subsets, "keep has no effect with subsets: leave one of them out")
        for count in self.subsets:
            known = ", ".join(map(str, SUBSETS))
            self.require(count in SUBSETS, f"subsets has {count}, known are those of {known} leads")
            lacking = [lead for lead in SUBSETS[count] if lead not in self.leads]
            self.require(not lacking, f"subsets has {count}, but the data lack lead {', '.join(lacking)}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return x.masked_fill(self.hidden(key)[..., None], 0)

    def hidden(self, key: Key) -> Tensor:
        """bool [B, leads], true where hidden."""
        chosen = uniform(key, f"{self.op}.chosen", (1,)) < self.p
        return chosen & (self._outside_subset(key) if self.subsets else self._outside_random(key))

    def _outside_random(self, key: Key) -> Tensor:
        leads = len(self.leads)
        kept = self.keep + integers(key, f"{self.op}.kept", (1,), leads - self.keep)
        rank = uniform(key, f"{self.op}.lead", (leads,)).argsort(dim=1, stable=True).argsort(dim=1)
        return rank >= kept

    def _outside_subset(self, key: Key) -> Tensor:
        table = _outside(tuple(self.subsets), self.leads, key.index.device)
        return table[integers(key, f"{self.op}.subset", (), len(table))]


@functools.cache
def _outside(subsets: tuple[int, ...], leads: tuple[str, ...], device: torch.device) -> Tensor:
    """bool [subsets, leads], true for a lead that is not in the set."""
    return torch.tensor([[lead not in SUBSETS[count] for lead in leads] for count in subsets], device=device)
