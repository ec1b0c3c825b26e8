"""Noise added to the signal in mV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, normal


@dataclass(kw_only=True)
class Gaussian(View):
    """White Gaussian noise of standard deviation `sd_mv` (mV), independent per lead and sample, added in float32."""

    stage: ClassVar[str] = "signal"
    sd_mv: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sd_mv >= 0, f"sd_mv must be at least 0, not {self.sd_mv:g}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        noise = normal(key, self.op, tuple(x.shape[1:])).mul_(self.sd_mv)
        return noise.add_(x).to(x.dtype)
