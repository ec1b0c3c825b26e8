"""A gain for each lead, as of electrodes that sit otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, uniform


@dataclass(kw_only=True)
class LeadGain(View):
    """Multiplies each lead by a factor of its own from U(1 - `most`, 1 + `most`).

    Amplitude scaling as in contrastive work on ECGs (Soltanieh et al. 2022, arXiv 2206.07656, compare augmentations).
    Limb leads then follow from I and II no more.
    """

    stage: ClassVar[str] = "signal"
    most: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.most < 1, f"most must be at least 0 and below 1, not {self.most:g}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return (x * uniform(key, self.op, (x.shape[1], 1), 1 - self.most, 1 + self.most)).to(x.dtype)
