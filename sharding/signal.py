"""Units, resampling, windows and quality checks: pure functions of arrays in millivolt `[leads, samples]`."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from umbra.signal import BETA, implausible, peak_of
from umbra.signal import PERIODS as PERIODS
from umbra.signal import RATES as RATES
from umbra.signal import ratio as ratio
from umbra.signal import resampled_length as resampled_length
from umbra.signal import to_millivolt as to_millivolt

IN_RATES = f">= {RATES[0]:g} and <= {RATES[1]:g}"
MOST_IMAGES = 10
MOST_RATIO = 10_000
STILL_SECONDS = 0.25


def can_resample(source_rate: float, target_rate: float) -> bool:
    """Whether the ratio of the rates is simple enough for a filter of reasonable length."""
    return max(ratio(source_rate, target_rate)) <= MOST_RATIO


@lru_cache(maxsize=64)
def _low_pass(up: int, down: int) -> NDArray[np.float64]:
    """The default filter of scipy's `resample_poly`: Kaiser window, beta 5, 10 periods per side, gain 1."""
    from scipy.signal import firwin

    widest = max(up, down)
    return firwin(2 * PERIODS * widest + 1, 1.0 / widest, window=("kaiser", BETA))


def resample(x: NDArray[np.float32], source_rate: float, target_rate: float) -> NDArray[np.float32]:
    """Polyphase resampling along the last axis of `[leads, samples]`, zero phase -> `[leads, resampled_length]`.

    The line through the first and last sample is subtracted before filtering and added back, so that offsets cause no
    steps at the ends. The low-pass is the default of scipy's `resample_poly`. Small integer decimation is done in the
    frequency domain: the same filter and, up to rounding, the same result, but much faster.
    """
    up, down = ratio(source_rate, target_rate)
    if up == down:
        return x
    first, step = x[:, :1], (x[:, -1:] - x[:, :1]) / np.float32(max(x.shape[1] - 1, 1))
    length = resampled_length(x.shape[1], source_rate, target_rate)
    level = x - (first + step * _ramp(x.shape[1], 1.0))
    if up == 1 and down <= MOST_IMAGES:
        level = _decimated(level, down)[:, :length]
    else:
        from scipy.signal import resample_poly

        level = resample_poly(level, up, down, axis=-1, window=_low_pass(up, down).astype(np.float32))
    return level + (first + step * _ramp(length, down / up))


@lru_cache(maxsize=64)
def _ramp(length: int, step: float) -> NDArray[np.float32]:
    return (np.arange(length) * step).astype(np.float32)


def _decimated(x: NDArray[np.float32], down: int) -> NDArray[np.float32]:
    """Every `down`-th value of the low-passed, zero-padded `x`: the sum of the `down` aliases of its spectrum."""
    from scipy.fft import irfft, rfft

    m, gain = _transfer(x.shape[1], down)
    n, half = m * down, m // 2 + 1
    spectrum = rfft(x, n, axis=-1, overwrite_x=True)
    spectrum *= gain
    total = spectrum[:, :half].copy()
    for start in range(m, n, m):
        if start + half - 1 <= n // 2:
            total += spectrum[:, start : start + half]
        else:  # above the Nyquist frequency: mirrored and conjugated
            total += spectrum[:, n - start - half + 1 : n - start + 1][:, ::-1].conj()
    return irfft(total, m, axis=-1)


@lru_cache(maxsize=64)
def _transfer(samples: int, down: int) -> tuple[int, NDArray[np.float32]]:
    """(output length that fits the signal and the filter's half-length, the low-pass at each input frequency)."""
    from scipy.fft import next_fast_len, rfft

    taps = _low_pass(1, down)
    reach = len(taps) // 2
    m = next_fast_len(-(-(samples + reach) // down), real=True)
    circular = np.zeros(m * down)
    circular[: reach + 1] = taps[reach:]
    circular[-reach:] += taps[:reach]
    return m, (rfft(circular).real / down).astype(np.float32)


def high_pass(x: NDArray[np.float32], rate: float, cutoff: float) -> NDArray[np.float32]:
    """`x` [leads, samples] high-passed at `cutoff` Hz: second-order Butterworth, forwards and backwards."""
    from scipy.signal import butter, sosfiltfilt

    padding = min(x.shape[-1] - 1, round(3 * rate / cutoff))
    sections = butter(2, cutoff, "highpass", fs=rate, output="sos")
    return sosfiltfilt(sections, x, axis=-1, padlen=max(padding, 0)).astype(np.float32)


def bridged(x: NDArray[np.float32], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`x` [leads, samples] with missing samples interpolated linearly, so that filters do not ring around them."""
    there, gaps = np.flatnonzero(~missing), np.flatnonzero(missing)
    if not len(there) or not len(gaps):
        return x
    out = x.copy()
    for lead in out:
        lead[gaps] = np.interp(gaps, there, lead[there])
    return out


def span(window: int, length: int, source_rate: float, target_rate: float) -> tuple[int, int]:
    """First and one past the last source sample of the `window`-th window of `length` target samples."""
    up, down = ratio(source_rate, target_rate)
    return window * length * down // up, -(-(window + 1) * length * down // up)


def still_ends(x: NDArray, rate: float) -> str:
    """How long no row of `x` [leads, samples] changes at its start and end, in words; "" if under `STILL_SECONDS`."""
    count = math.ceil(STILL_SECONDS * rate)
    if x.shape[1] < count or not any(
        (x[:, end] == x[:, end][:, :1]).all() for end in (slice(count), slice(-count, None))
    ):
        return ""
    changes = np.flatnonzero((x[:, 1:] != x[:, :-1]).any(axis=0))
    if not len(changes):
        return "no lead changes"
    start, end = (changes[0] + 1) / rate, (x.shape[1] - 1 - changes[-1]) / rate
    return f"no lead changes in the first {start:.3g} s and the last {end:.3g} s"


def to_units(
    x: NDArray[np.float32], seen: NDArray[np.float32], resolution_uv: float
) -> tuple[NDArray[np.int16] | None, str, str]:
    """(a window `x` [leads, samples] in mV as int16 steps of `resolution_uv`, "", ""), or (None, reason, detail).

    Rounded to even, never clipped. `seen` is the recorded part of `x`; the rest is zeros. Reasons besides those of
    `implausible`: `clipped`, a value that does not fit int16; `flat_lead`, a lead that varies by less than a step.
    """
    low, high = seen.min(axis=1), seen.max(axis=1)
    reason, detail = implausible(seen, low, high)
    if reason:
        return None, reason, detail
    scale = np.float32(1000.0 / resolution_uv)
    least, most = np.rint(low * scale), np.rint(high * scale)  # rounding keeps the order
    if most.max() > 32767 or least.min() < -32768:
        return None, "clipped", f"{peak_of(low, high):.3g} mV at {resolution_uv:g} microvolt"
    if flat := int((least == most).sum()):
        return None, "flat_lead", f"{flat} leads never change by {resolution_uv:g} microvolt"
    return np.rint(x * scale).astype("<i2"), "", ""
