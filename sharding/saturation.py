"""Where a recording stands at the limits of its converter, judged on the digital samples as they were stored.

A sample at a limit is no fault: writers such as `wfdb.wrsamp` choose the scale so that the extremes of each lead are
the limits of the format. A lead is saturated where it is at one limit

- for at least `LONG_S` at a stretch, or for at least `SHARE` of `BLOCK_S` (of all of a shorter recording, but no less
  than `LONG_S`), and `EDGE` times as long as a step beside it: real ECGs that span 8 bits or more, not clipped, stay
  at an extreme for up to 0.12 s and 1.3 %, and a parabola, rounded, for 1.4 times as long as a step beside it;

or for a shorter time, if

- it stays at a limit for at least `RUN` samples (`RUN` times as many as each was repeated),
- it comes and goes by more than `ROUNDING` of its steps: a parabola, rounded, stays for 3 samples or more only where it
  changes by at most 2 steps beside them, so that a smooth peak is no plateau at any resolution,
- and it does so by more than `STEEP` times its median change, or it stays longer than at any other peak or trough near
  by: coarse samples, and those that were repeated, stand still at many of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 3
ROUNDING = 2
STEEP = 6
LONG_S = 0.3
SHARE, BLOCK_S = 0.05, 10.0
EDGE = 2
NEAR = 5000  # samples: peaks and troughs are compared with those of their own, the previous and the next so many
Limits = Sequence[tuple[int, int]]
Mask = NDArray[np.bool_]


def converter(bits: int, zero: int, widest: tuple[int, int]) -> tuple[int, int]:
    """(lowest, highest) sample of a converter of `bits` around `zero`; `widest` is what the file can hold, and stands
    where `bits` is no resolution (0: not stated)."""
    if not 0 < bits <= 32:
        return widest
    half = 1 << (bits - 1)
    return max(zero - half, widest[0]), min(zero + half - 1, widest[1])


def saturation(values: NDArray[Any], limits: Limits, widest: Limits, rate: float) -> tuple[Mask | None, Mask | None]:
    """([samples] where some lead is at a limit, [samples] where one is saturated); None where none is.

    `values` [leads, samples]: as stored, at `rate` Hz, NaN or a value beyond `widest` for no sample. `limits` [leads]:
    the lowest and highest sample; those of `widest` count instead if a lead goes beyond its own, which then are not the
    converter's.
    """
    lowest, highest = np.fmin.reduce(values, axis=1).tolist(), np.fmax.reduce(values, axis=1).tolist()
    if all(low < a and b < high for a, b, (low, high) in zip(lowest, highest, limits)):
        return None, None
    if any(_beyond(*of_lead) for of_lead in zip(values, limits, widest)):
        limits = widest
    at = np.stack([(row == low) | (row == high) for row, (low, high) in zip(values, limits)])
    if not at.any():
        return None, None
    saturated = np.zeros(values.shape[1], bool)
    there = _without_padding(values, at)
    for row, (low, high) in zip(values[:, there], limits):
        saturated[there] |= _plateaus(row, low, high, rate) | _often(row, low, high, rate)
    return np.logical_or.reduce(at, axis=0), saturated if saturated.any() else None


def _beyond(row: NDArray[Any], limits: tuple[int, int], widest: tuple[int, int]) -> bool:
    return bool((((row < limits[0]) & (row >= widest[0])) | ((row > limits[1]) & (row <= widest[1]))).any())


def _without_padding(values: NDArray[Any], at: Mask) -> slice:
    """All samples but those at both ends in which no lead changes, unless all leads are at a limit there."""
    changes = np.flatnonzero((values[:, 1:] != values[:, :-1]).any(axis=0))
    if not len(changes):
        return slice(0, 1)
    return slice(0 if at[:, 0].all() else int(changes[0]), None if at[:, -1].all() else int(changes[-1]) + 2)


def _often(row: NDArray[Any], low: int, high: int, rate: float) -> Mask:
    """[samples] where a lead is at a limit at which it is for a large share of the time; none if it never changes."""
    block = min(round(BLOCK_S * rate), len(row))
    least = max(SHARE * block, LONG_S * rate)
    often = np.zeros(len(row), bool)
    for limit, beside in ((low, low + 1), (high, high - 1)):
        count, edge = (
            np.add.reduceat(row == v, np.arange(0, len(row), block), dtype=np.int64) for v in (limit, beside)
        )
        often |= (row == limit) & np.repeat((count >= least) & (count > EDGE * edge), block)[: len(row)]
    return often if (row != row[0]).any() else np.zeros_like(often)


def _plateaus(row: NDArray[Any], low: int, high: int, rate: float) -> Mask:
    """[samples] where a lead is saturated, from its runs of equal samples and the changes between them."""
    start = np.r_[0, np.flatnonzero(row[1:] != row[:-1]) + 1]
    length, level = np.diff(np.r_[start, len(row)]), row[start].astype(np.float64)
    change = np.abs(np.diff(level))
    if not len(change):
        return np.zeros(len(row), bool)
    leap = np.minimum(np.r_[np.inf, change], np.r_[change, np.inf])  # the smaller one of before and after a run
    plateau = (length >= RUN * np.percentile(length, 10)) & (leap > ROUNDING * change.min())
    plateau &= (leap > STEEP * np.median(change)) | (length > _longest_near(start, length, level, low, high))
    beside = np.r_[0, length[:-1]] + np.r_[length[1:], 0]
    long = (length >= LONG_S * rate) & (length > EDGE * beside)
    return np.repeat(((level == low) | (level == high)) & (plateau | long), length)


def _longest_near(
    start: NDArray[np.int64], length: NDArray[np.int64], level: NDArray[np.float64], low: int, high: int
) -> NDArray[np.int64]:
    """[runs] the longest run of equal samples at a peak or trough near by that is at no limit."""
    turn = (low < level) & (level < high)
    turn[1:-1] &= (level[1:-1] > level[:-2]) == (level[1:-1] > level[2:])
    turn[[0, -1]] = False
    place = start // NEAR + 1
    longest = np.zeros(place[-1] + 2, np.int64)
    np.maximum.at(longest, place[turn], length[turn])
    near: NDArray[np.int64] = np.maximum(np.maximum(longest[place - 1], longest[place]), longest[place + 1])
    return near
