"""Which samples between the waves of a lead are noisy, as by muscles or mains.

Noisy is what the eye sees as a rough line: above `ABOVE_HZ` a standard deviation of more than `NOISE_MV` within
`WINDOW_S`, estimated by the median, which the edges of QRS next to it, or a beat that was not found, do not move.
Baseline wander is slower and does not count. Looked at are samples outside waves, `AROUND_R_S` from R peaks, between
the first and the last of these. At a rate that holds nothing above `ABOVE_HZ` nothing is noisy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, median_filter
from scipy.signal import butter, sosfiltfilt

NOISE_MV, ABOVE_HZ, WINDOW_S, AROUND_R_S = 0.015, 25.0, 0.3, 0.1
NORMAL = 0.6745  # the median of |x| over the standard deviation of x, where x is normal
Bools = NDArray[np.bool_]


def noisy(signal: NDArray[np.float32], rate: float, waves: Bools, r: NDArray[np.float64]) -> Bools:
    """The noisy samples, bool [T], of a lead [T] in mV at `rate` Hz with these `waves` (bool [W, T]) and R peaks
    [beats], in samples."""
    if rate <= 2 * ABOVE_HZ or len(r) < 2:
        return np.zeros(len(signal), bool)
    high = sosfiltfilt(butter(4, ABOVE_HZ, "highpass", fs=rate, output="sos"), signal.astype(float))
    deviation = median_filter(np.abs(high), max(1, round(WINDOW_S * rate))) / NORMAL
    return np.asarray(_between(waves.max(0), rate, np.rint(r).astype(int)) & (deviation > NOISE_MV))


def _between(waves: Bools, rate: float, r: NDArray[np.int64]) -> Bools:
    """The samples [T] between beats, outside waves."""
    inside, peaks = np.zeros_like(waves), np.zeros_like(waves)
    inside[r.min() : r.max()] = True
    peaks[r] = True
    return inside & ~waves & ~binary_dilation(peaks, np.ones(2 * round(AROUND_R_S * rate) + 1, bool))
