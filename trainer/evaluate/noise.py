"""Which samples between the beats of a lead are noisy, as by muscles or mains.

Looked at are samples at least `AROUND_R_S` from every R peak and `MARGIN_S` from every wave, between the first and the
last R peak. Noisy is what the eye sees as a rough line there: above `ABOVE_HZ` a standard deviation of more than
`NOISE_MV` within `WINDOW_S`, estimated by the median of those samples (at least half of the window), which a beat that
was not found does not move. Baseline wander is slower and does not count. At a rate that holds nothing above `ABOVE_HZ`
nothing is noisy; nor is anything in a tachycardia whose beats leave no such stretch.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.signal import butter, sosfiltfilt

NOISE_MV, ABOVE_HZ, WINDOW_S = 0.015, 25.0, 0.3
AROUND_R_S, MARGIN_S = 0.2, 0.04
NORMAL = 0.6745  # the median of |x| over the standard deviation of x, where x is normal
Bools = NDArray[np.bool_]


def noisy(signal: NDArray[np.float32], rate: float, waves: Bools, r: NDArray[np.float64]) -> tuple[Bools, Bools]:
    """The noisy samples, bool [T], of a lead [T] in mV at `rate` Hz with these `waves` (bool [W, T]) and R peaks
    [beats], in samples; and if there are some, the quiet ones to compare them with."""
    none = np.zeros(len(signal), bool)
    if rate <= 2 * ABOVE_HZ or len(r) < 2:
        return none, none
    looked_at = _between(waves.max(0), rate, np.rint(r).astype(int))
    high = sosfiltfilt(butter(4, ABOVE_HZ, "highpass", fs=rate, output="sos"), signal.astype(float))
    half = max(1, round(WINDOW_S * rate / 2))
    seen = np.pad(np.where(looked_at, np.abs(high), np.nan), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(seen, 2 * half + 1)
    enough = looked_at & (np.isfinite(windows).sum(1) >= half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # windows without a sample
        deviation = np.nanmedian(windows, axis=1) / NORMAL
    noise = enough & (deviation > NOISE_MV)
    return noise, enough & ~noise if noise.any() else none


def _between(waves: Bools, rate: float, r: NDArray[np.int64]) -> Bools:
    """The samples [T] well between beats and outside waves."""
    inside, peaks = np.zeros_like(waves), np.zeros_like(waves)
    inside[r.min() : r.max()] = True
    peaks[r] = True
    return inside & ~_widened(waves, MARGIN_S * rate) & ~_widened(peaks, AROUND_R_S * rate)


def _widened(of: Bools, by: float) -> Bools:
    return np.asarray(binary_dilation(of, np.ones(2 * round(by) + 1, bool)))
