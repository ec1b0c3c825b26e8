"""A mask on the QRS complexes, found by their slopes: what a masker often looks for, without learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, uniform

APART_S = 0.01  # half of the time over which a slope is measured
HIGH, SHARE = 0.98, 0.3  # a complex is where the energy is above this share of this quantile of it


@dataclass(kw_only=True)
class QrsMask(View):
    """Hides the QRS complexes in all leads, each with probability `beats`.

    The steps of Pan and Tompkins 1985 (IEEE Trans Biomed Eng 32:230-236) without their rules of timing: the derivative
    is squared, summed over the leads, and averaged over `window_s` seconds; a complex is where this energy exceeds 0.3
    of its 0.98 quantile over the ECG. How much is hidden follows from the rhythm. Signals must be longer than the
    window.
    """

    stage: ClassVar[str] = "mask"
    beats: float = 1.0
    window_s: float = 0.12

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beats <= 1, f"beats must be 0 to 1, not {self.beats:g}")
        self.require(0.02 <= self.window_s <= 1, f"window_s must be 0.02 to 1, not {self.window_s:g}")

    def check_signal(self, samples: int, rate: float) -> None:
        fits = self.window_s * rate < samples
        self.require(fits, f"window_s={self.window_s:g} does not fit into {samples / rate:g} s: give longer views")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return x.masked_fill(self.hidden(x, key, rate)[:, None], 0)

    def hidden(self, x: Tensor, key: Key, rate: float) -> Tensor:
        """bool [B, samples], true where hidden."""
        found = self.complexes(x, rate)
        begins = found & ~F.pad(found[:, :-1], (1, 0))
        number = begins.cumsum(1).clamp_min(1) - 1
        drawn = uniform(key, f"{self.op}.beat", (x.shape[-1] // 2 + 1,)) < self.beats
        return found & drawn.gather(1, number)

    def complexes(self, x: Tensor, rate: float) -> Tensor:
        """bool [B, samples]: where a QRS complex is. Sums in a fixed order: the same in any batch."""
        apart = max(1, round(APART_S * rate))
        slope = F.pad(x[..., 2 * apart :].double() - x[..., : -2 * apart], (apart, apart)).square()
        energy = slope[:, 0]
        for lead in range(1, x.shape[1]):
            energy = energy + slope[:, lead]
        width = max(1, round(self.window_s * rate))
        total = F.pad(energy, (width // 2 + 1, width - width // 2 - 1)).cumsum(-1)
        average = total[:, width:] - total[:, :-width]
        highest = average.kthvalue(max(1, round(HIGH * x.shape[-1])), -1, keepdim=True).values
        return (average > SHARE * highest) & (highest > 1e-12)
