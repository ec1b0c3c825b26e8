"""Which samples of a lead lie in P, QRS and T, with a P only where there is one, and in noise between them.

NeuroKit2 finds the waves (discrete wavelets: Martinez et al. 2004, IEEE Trans Biomed Eng 51:570; Makowski et al. 2021,
Behav Res Methods 53:1689). For its P it takes the likeliest bump before each QRS, also where the line is flat or
fibrillates. "No discernible repeating P waves" is what an ECG of atrial fibrillation shows (ESC guideline 2020, Eur
Heart J 42:373), so a P is accepted here only if it

- stands out: its peak is at least `HEIGHT_MV` above the straight line between its ends, which is the smallest wave that
  a device has to recognise (IEC 60601-2-51:2003, annex GG.5);
- is steady: its distance to R differs by at most `STEADY_S` from the median of those that stand out (as 99 % of the P
  waves do that cardiologists marked in LUDB, third degree AV block left out);
- repeats: the two hold in at least the share `BEATS` of the beats and in `LEAST` of them, and the mean of all beats,
  aligned at R, has at that distance at least `AVERAGE` of the height, where fibrillation waves cancel out (the P wave
  evidence of Pürerfellner et al. 2014, Heart Rhythm 11:1575, is such a mean).

Otherwise no beat of the ECG has a P. Only upright P waves are accepted, as sinus rhythm has them in I, II and V4 to V6:
where they point down (aVR, often V1, ectopic atrial rhythm), none is. None is accepted either where atria and
ventricles beat independently (third degree AV block), although there are P waves; flutter waves at a fixed ratio to QRS
are steady and pass.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.noise import noisy
from umbra.errors import UserError

WAVES = ("P", "QRS", "T", "between", "noise", "quiet")
HEIGHT_MV, STEADY_S, BEATS, LEAST, AVERAGE = 0.03, 0.03, 0.5, 3, 0.5
LONGEST_S = {"P": 0.4, "QRS": 0.4, "T": 0.8}
Bools = NDArray[np.bool_]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What NeuroKit2 finds in one lead at `rate` Hz: `clean` [T], the filtered signal in mV; `r` [beats], R peaks; `p`
    [beats], P peaks; `start` and `end` [3, beats] of P, QRS and T. In samples, NaN where nothing was found."""

    clean: Array
    rate: float
    r: Array
    p: Array
    start: Array
    end: Array


@dataclass(frozen=True)
class Delineation:
    """`waves` bool [6, T]: the samples in P, QRS, T and between them, and of the last the noisy ones and, where there
    are some, the quiet ones (`noise.py`); `count` [6]: of how many `beats` the four are, and the stretches of both."""

    waves: Bools
    count: tuple[int, int, int, int, int, int]
    beats: int


def delineate(signal: NDArray[np.float32], rate: float) -> Delineation | None:
    """The waves of one lead [T] in mV, P only where accepted; None if there are no beats."""
    found = find_waves(signal, rate)
    if found is None:
        return None
    there = np.isfinite(found.start)
    there[0] &= accepted_p(found)
    waves = np.zeros((len(WAVES), len(signal)), bool)
    for wave, beat in np.argwhere(there):
        waves[wave, int(found.start[wave, beat]) : int(found.end[wave, beat]) + 1] = True
    waves[3] = ~waves[:3].any(0)
    waves[4:] = noisy(signal, rate, waves[:3], found.r)
    p, qrs, t = (int(n) for n in there.sum(1))
    noise, quiet = (int(n) for n in np.diff(waves[4:].astype(np.int8), prepend=0).clip(min=0).sum(1))
    return Delineation(waves, (p, qrs, t, len(found.r), noise, quiet), len(found.r)) if qrs else None


def accepted_p(found: Found) -> Bools:
    """Which beats [beats] have an upright P that stands out, is steady and repeats."""
    marks = np.stack([found.start[0], found.p, found.end[0]])
    height = _height(found.clean, marks)
    out = height >= HEIGHT_MV  # NaN is not
    if not out.any():
        return out
    to_r = found.r - marks
    steady = out & (np.abs(to_r[1] - np.median(to_r[1, out])) <= STEADY_S * found.rate + 1e-6)
    if steady.sum() < max(LEAST, BEATS * len(steady)):
        return np.zeros_like(steady)
    everywhere = found.r - np.median(to_r[:, steady], axis=1, keepdims=True)
    average = np.nanmean(_height(found.clean, everywhere))
    return steady if average >= AVERAGE * np.median(height[steady]) else np.zeros_like(steady)


def _height(clean: Array, marks: Array) -> Array:
    """By how much peaks lie above the lines between the ends of their waves, [n] in mV, of `marks` [3, n], start, peak
    and end in samples; NaN where one is missing, outside, or out of order."""
    start, peak, end = marks
    whole = (start >= 0) & (start < peak) & (peak < end) & (end < len(clean))
    height = np.full(len(whole), np.nan)
    at = [np.rint(mark[whole]).astype(int) for mark in marks]
    along = (peak - start)[whole] / (end - start)[whole]
    height[whole] = clean[at[1]] - (1 - along) * clean[at[0]] - along * clean[at[2]]
    return height


def find_waves(signal: NDArray[np.float32], rate: float) -> Found | None:
    """What NeuroKit2 finds in one lead [T] in mV; None if that fails, as on a line without beats."""
    try:
        import neurokit2
    except ImportError:
        raise UserError("delineation needs NeuroKit2: pip install 'umbra[delineate]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clean = neurokit2.ecg_clean(signal.astype(float), sampling_rate=rate)
            _, peaks = neurokit2.ecg_peaks(clean, sampling_rate=rate)
            _, found = neurokit2.ecg_delineate(clean, peaks["ECG_R_Peaks"], sampling_rate=rate, method="dwt")
    except Exception:  # the library raises whatever numpy does on a signal without beats
        return None
    names = ("P", "R", "T")
    start = np.array([found[f"ECG_{name}_Onsets"] for name in names], float)
    end = np.array([found[f"ECG_{name}_Offsets"] for name in names], float)
    length = (end - start) / rate
    whole = (length > 0) & (length < np.array(list(LONGEST_S.values()))[:, None])  # NaN is neither
    start[~whole], end[~whole] = np.nan, np.nan
    r, p = np.array(peaks["ECG_R_Peaks"], float), np.array(found["ECG_P_Peaks"], float)
    return Found(np.asarray(clean, float), rate, r, p, start, end)
