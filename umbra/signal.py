"""What shards and `Encoder.embed` share: units, the ratio of two rates, and when a signal is no ECG."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

AMPLITUDE_MV = 20.0
STD_MV = (0.002, 10.0)
RATES = (50.0, 20000.0)
PERIODS = 10  # of the resampling filter, on each side
BETA = 5.0  # of its Kaiser window

_TO_MV = {"mv": 1.0, "": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "nv": 1e-6, "v": 1e3}


@lru_cache(maxsize=256)
def to_millivolt(units: str) -> float | None:
    """Factor from `units` (any case; empty means millivolts) to millivolts; None if they are not a voltage."""
    return _TO_MV.get(units.strip().lower())


@lru_cache(maxsize=256)
def ratio(source_rate: float, target_rate: float) -> tuple[int, int]:
    """(up, down) in lowest terms with `target_rate = source_rate * up / down`, to within 1 part in a million."""
    fraction = Fraction(target_rate).limit_denominator(1000) / Fraction(source_rate).limit_denominator(1000)
    return fraction.numerator, fraction.denominator


def resampled_length(samples: int, source_rate: float, target_rate: float) -> int:
    """Samples at the target rate of a recording of `samples` at the source rate."""
    up, down = ratio(source_rate, target_rate)
    return -(-samples * up // down)


def implausible(x: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> tuple[str, str]:
    """(reason, detail) why `x` [leads, samples] in mV, from `low` to `high` [leads], is no ECG; ("", "") if it may be.

    `nan`; `flat_lead`: a lead that never changes. `units`: the median lead's standard deviation lies outside 0.002 to
    10 mV, as when microvolts or volts are taken for millivolts. `amplitude`: a value beyond 20 mV.
    """
    if not np.isfinite(high - low).all():
        return "nan", "values that are not finite"
    if (low == high).any():
        return "flat_lead", f"{int((low == high).sum())} of {len(x)} leads never change"
    mean = np.add.reduce(x, axis=1) / x.shape[1]
    variance = np.einsum("ij,ij->i", x, x) / x.shape[1] - np.square(mean)
    spread = float(np.sqrt(max(np.sort(variance)[len(x) // 2], 0.0)))
    if not STD_MV[0] <= spread <= STD_MV[1]:
        taken = "volt" if spread < STD_MV[0] else "microvolt"
        return "units", f"standard deviation {spread:.2g} mV: {taken} taken for millivolt, or a wrong gain?"
    if (peak := peak_of(low, high)) > AMPLITUDE_MV:
        return "amplitude", f"{peak:.3g} mV, more than {AMPLITUDE_MV:g}"
    return "", ""


def peak_of(low: NDArray[np.float32], high: NDArray[np.float32]) -> float:
    return max(float(high.max()), -float(low.min()))
