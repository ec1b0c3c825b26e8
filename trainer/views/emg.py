"""Bursts of muscle noise."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, normal, uniform

TOP = 0.45  # of the sampling rate: the highest frequency of the noise
TAPS_S = 0.2  # length of the filter
SHORTEST_S, LONGEST_S = 0.5, 3.0  # of a burst


@dataclass(kw_only=True)
class Emg(View):
    """Adds the noise of muscles: white noise between `low` and `high` Hz (at most 0.45 of the rate), in `bursts`.

    A burst is centred anywhere in the window, lasts 0.5 to 3 s and swells and fades as a parabola; each lead has a
    factor from U(0, 1) and noise of its own. The standard deviation at its top is, for each ECG, from U(0, `sd_mv`). A
    kind of noise of Friesen et al. 1990 (IEEE Trans Biomed Eng 37:85-98). Raises `UserError` if the data's rate cannot
    hold the band.
    """

    stage: ClassVar[str] = "signal"
    sd_mv: float = 0.1
    low: float = 20.0
    high: float = 150.0
    bursts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sd_mv >= 0, f"sd_mv must be at least 0, not {self.sd_mv:g}")
        self.require(0 < self.low < self.high, f"low and high must be 0 < low < high, not {self.low:g}, {self.high:g}")
        self.require(1 <= self.bursts <= 100, f"bursts must be 1 to 100, not {self.bursts}")

    def check_signal(self, samples: int, rate: float) -> None:
        self.require(
            self.low < TOP * rate,
            f"low={self.low:g} Hz needs a rate above {self.low / TOP:.3g} Hz, the data have {rate:g}: lower it",
        )

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        size = uniform(key, f"{self.op}.size", (1, 1), 0.0, self.sd_mv)
        size = size * uniform(key, f"{self.op}.lead", (x.shape[1], 1)) * self.swelling(key, x.shape[2], rate)
        return (x + size * self.noise(key, x.shape[1], x.shape[2], rate)).to(x.dtype)

    def swelling(self, key: Key, samples: int, rate: float) -> Tensor:
        """float32 [B, 1, samples], 0 to 1: the largest of the bursts at each sample."""
        centre = uniform(key, f"{self.op}.centre", (self.bursts,), 0.0, float(samples))
        half = uniform(key, f"{self.op}.length", (self.bursts,), SHORTEST_S * rate / 2, LONGEST_S * rate / 2)
        place = torch.arange(samples, device=key.index.device)
        away = (place - centre[..., None]) / half[..., None]
        return (1 - away * away).clamp_min(0).amax(1, keepdim=True)

    def noise(self, key: Key, leads: int, samples: int, rate: float) -> Tensor:
        """float32 [B, leads, samples] of variance 1, filtered by sums in a fixed order: the same in any batch."""
        taps = band_pass(self.low, min(self.high, TOP * rate), rate)
        white = normal(key, f"{self.op}.noise", (leads, samples + len(taps) - 1))
        total = white[..., :samples] * taps[0]
        for k, tap in enumerate(taps[1:], 1):
            total += white[..., k : k + samples] * tap
        return total


@functools.lru_cache(maxsize=16)
def band_pass(low: float, high: float, rate: float) -> tuple[float, ...]:
    """A filter of that band in Hz and of unit energy: a sinc under a Hamming window (Oppenheim and Schafer)."""
    half = max(2, round(TAPS_S * rate / 2))
    taps = []
    for k in range(-half, half + 1):
        window = 0.54 + 0.46 * math.cos(math.pi * k / half)
        taps.append(window * (_sinc(2 * high / rate, k) - _sinc(2 * low / rate, k)))
    energy = math.sqrt(sum(tap * tap for tap in taps))
    return tuple(tap / energy for tap in taps)


def _sinc(cut: float, k: int) -> float:
    """The ideal low-pass at `cut` of the Nyquist frequency, at sample k."""
    return cut if k == 0 else math.sin(math.pi * cut * k) / (math.pi * k)
