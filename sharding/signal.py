"""Units, resampling, windows and quality checks: pure functions of arrays in millivolt `[leads, samples]`."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

AMPLITUDE_MV = 20.0
STD_MV = (0.002, 10.0)
RATES = (50.0, 20000.0)

_TO_MV = {"mv": 1.0, "": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "nv": 1e-6, "v": 1e3}


def to_millivolt(units: str) -> float | None:
    """Factor from `units` (any case; nothing means millivolt) to millivolt; None for anything that is no voltage."""
    return _TO_MV.get(units.strip().lower())


@lru_cache(maxsize=256)
def ratio(source_rate: float, target_rate: float) -> tuple[int, int]:
    """(up, down) in lowest terms with `target_rate = source_rate * up / down`, to within 1 part in a million."""
    fraction = Fraction(target_rate).limit_denominator(1000) / Fraction(source_rate).limit_denominator(1000)
    return fraction.numerator, fraction.denominator


def resampled_length(samples: int, source_rate: float, target_rate: float) -> int:
    up, down = ratio(source_rate, target_rate)
    return -(-samples * up // down)


@lru_cache(maxsize=64)
def _low_pass(up: int, down: int) -> NDArray[np.float32]:
    from scipy.signal import firwin

    widest = max(up, down)
    return firwin(20 * widest + 1, 1.0 / widest, window=("kaiser", 5.0)).astype(np.float32)


def resample(x: NDArray[np.float32], source_rate: float, target_rate: float) -> NDArray[np.float32]:
    """Polyphase resampling along the last axis, zero phase -> `[..., resampled_length]`.

    The low-pass is scipy's own for `resample_poly` (Kaiser, beta 5, 10 periods a side); beyond its ends a signal goes
    on along the line through its first and last sample, so that an offset makes no step there.
    """
    up, down = ratio(source_rate, target_rate)
    if up == down:
        return x
    from scipy.signal import resample_poly

    return resample_poly(x, up, down, axis=-1, window=_low_pass(up, down), padtype="line")


def span(window: int, length: int, source_rate: float, target_rate: float) -> tuple[int, int]:
    """First and one past the last source sample of the `window`-th window of `length` target samples."""
    up, down = ratio(source_rate, target_rate)
    return window * length * down // up, -(-(window + 1) * length * down // up)


def check(x: NDArray[np.float32]) -> tuple[str, str]:
    """(reason, detail) why a window `x` [leads, samples] in mV is no plausible ECG; ("", "") if it is.

    `flat_lead`: a lead that never changes. `units`: the median lead's standard deviation lies outside 0.002 to 10 mV,
    as when microvolt or volt are taken for millivolt. `amplitude`: a value beyond 20 mV.
    """
    low, high = x.min(axis=1), x.max(axis=1)
    if not np.isfinite(high - low).all():
        return "nan", "values that are no numbers"
    if (low == high).any():
        return "flat_lead", f"{int((low == high).sum())} of {len(x)} leads never change"
    variance = np.einsum("ij,ij->i", x, x) / x.shape[1] - np.square(x.mean(axis=1))
    spread = float(np.sqrt(max(np.sort(variance)[len(x) // 2], 0.0)))
    if not STD_MV[0] <= spread <= STD_MV[1]:
        taken = "microvolt" if spread > STD_MV[1] else "volt"
        return "units", f"standard deviation {spread:.2g} mV: {taken} taken for millivolt, or a wrong gain?"
    peak = max(float(high.max()), -float(low.min()))
    if peak > AMPLITUDE_MV:
        return "amplitude", f"{peak:.3g} mV, more than {AMPLITUDE_MV:g}"
    return "", ""


def quantise(x: NDArray[np.float32], resolution_uv: float) -> NDArray[np.int16] | None:
    """`x` in mV as int16 in steps of `resolution_uv` microvolt, rounded to even; None if a value does not fit int16."""
    scaled = np.rint(x * np.float32(1000.0 / resolution_uv))
    if scaled.size and (scaled.max() > 32767 or scaled.min() < -32768):
        return None
    return scaled.astype("<i2")
