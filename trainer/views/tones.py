"""Slow wander and mains hum: sums of tones near each other, independent per lead."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, normal, uniform

SPACING = 0.05  # Hz between the tones of the wander: they repeat after 20 s
SIDES = (-0.2, -0.1, 0.0, 0.1, 0.2)  # Hz: the tones of the mains, which make its amplitude rise and fall within 10 s


@dataclass(kw_only=True)
class Wander(View):
    """Adds baseline wander: tones of `low` to `high` Hz with equal power, as of respiration and moving electrodes.

    Its standard deviation is, for each ECG, from U(0, `sd_mv`). A kind of noise of Friesen et al. 1990 (IEEE Trans
    Biomed Eng 37:85-98), there one sine of respiration.
    """

    stage: ClassVar[str] = "signal"
    sd_mv: float = 0.2
    low: float = 0.05
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sd_mv >= 0, f"sd_mv must be at least 0, not {self.sd_mv:g}")
        self.require(0 < self.low < self.high, f"low and high must be 0 < low < high, not {self.low:g}, {self.high:g}")
        self.require(self.high <= 5, f"high must be at most 5 Hz, not {self.high:g}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        count = 1 + math.floor((self.high - self.low) / SPACING + 1e-6)
        frequencies = tuple(self.low + SPACING * k for k in range(count))
        return _with(x, key, self.op, self.sd_mv, frequencies, rate)


@dataclass(kw_only=True)
class Mains(View):
    """Adds mains hum at `hz`, whose amplitude changes slowly. Its standard deviation is from U(0, `sd_mv`), by ECG.

    A kind of noise of Friesen et al. 1990 (IEEE Trans Biomed Eng 37:85-98), here a narrow band instead of one sine,
    since neither frequency nor coupling stays as it is. Raises `UserError` if the data's rate cannot hold it.
    """

    stage: ClassVar[str] = "signal"
    sd_mv: float = 0.05
    hz: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sd_mv >= 0, f"sd_mv must be at least 0, not {self.sd_mv:g}")
        self.require(1 <= self.hz <= 1000, f"hz must be 1 to 1000, not {self.hz:g}")

    def check_signal(self, samples: int, rate: float) -> None:
        self.require(
            2 * (self.hz + SIDES[-1]) < rate,
            f"{self.hz:g} Hz needs a rate above {2 * self.hz:g} Hz, the data have {rate:g}: leave the view out",
        )

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        return _with(x, key, self.op, self.sd_mv, tuple(self.hz + side for side in SIDES), rate)


def _with(x: Tensor, key: Key, op: str, most: float, frequencies: tuple[float, ...], rate: float) -> Tensor:
    """x [B, leads, T] plus tones of these frequencies, of a standard deviation from U(0, `most`) per ECG."""
    size = uniform(key, f"{op}.size", (1, 1), 0.0, most)
    return (x + size * tones(key, op, x.shape[1], frequencies, x.shape[2], rate)).to(x.dtype)


def tones(key: Key, op: str, leads: int, frequencies: tuple[float, ...], samples: int, rate: float) -> Tensor:
    """float32 [B, leads, samples]: a Gaussian process of mean 0 and variance 1 with equal power at each frequency (Hz).

    Cosines and sines with normal factors, summed in a fixed order: the same in any batch and on every device.
    """
    table = _table(frequencies, samples, rate, key.index.device)
    factor = normal(key, op, (leads, len(table))).mul_(1 / math.sqrt(len(frequencies)))
    total = factor[:, :, 0, None] * table[0]
    for k in range(1, len(table)):
        total += factor[:, :, k, None] * table[k]
    return total


@functools.lru_cache(maxsize=16)
def _table(frequencies: tuple[float, ...], samples: int, rate: float, device: torch.device) -> Tensor:
    """float32 [2 K, samples]: the cosines, then the sines, computed in float64 on the CPU."""
    turns = torch.tensor(frequencies, dtype=torch.float64)[:, None] * torch.arange(samples, dtype=torch.float64) / rate
    angle = 2 * math.pi * turns
    return torch.cat([angle.cos(), angle.sin()]).to(torch.float32).to(device)
