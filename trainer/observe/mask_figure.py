"""An ECG on ECG paper with its masks, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from umbra.drawing.paper import INK, MM_PER_MV, MM_PER_S, sheet, write

Array = NDArray[np.float64]
MASK_COLOURS = ("#2166ac", "#1b7837", "#762a83", "#b35806", "#01a0a8", "#4d4d4d") + (
    *("#8a7d00", "#c2185b", "#5d4037", "#5c6bc0", "#7cb342", "#000000"),
)
GAINS = (MM_PER_MV, MM_PER_MV / 2, MM_PER_MV / 4, MM_PER_MV / 10)
TALLEST = 60.0  # mm of a lead from peak to peak; the gain is lower for an ECG that needs more
LEAST_ABOVE, LEAST_BELOW = 12.1, 9.9  # mm of a line of leads above and below the median
NAME = 5.0  # mm for the name of a lead
LANE, MOST_LANES = 1.2, 6.0  # mm of one mask's lane, and of all
COLUMNS = (("I", "II", "III", "aVR", "aVL", "aVF"), ("V1", "V2", "V3", "V4", "V5", "V6"))


def ecg_with_masks(
    signal_mv: Any,
    masks: Any,
    rate: float,
    leads: Sequence[str],
    path: str | Path,
    title: str = "",
    seconds: float = 5.0,
) -> None:
    """Draws the first `seconds` of an ECG on ECG paper (25 mm/s, 10 mm/mV), the masks as shaded bands; writes a PNG.

    Each lead is centred on its median; lines of leads are as high as their traces need, so that no lead crosses
    another. Where that would be more than `TALLEST` mm, the gain is reduced; it is printed below the leads.

    signal_mv: [leads, T] in mV; masks: [N, T] (the same for all leads) or [N, leads, T], in 0..1 (shade = value), or
    None; rate in Hz. Limb leads are on the left and chest leads on the right; other lead names fill two columns in
    order. Raises `ValueError` if the shapes do not fit.
    """
    signal = np.asarray(signal_mv, dtype=float)
    if signal.ndim != 2 or len(signal) != len(leads):
        raise ValueError(f"signal of shape {signal.shape} does not fit {len(leads)} leads")
    bands = _bands(masks, signal.shape)
    count = min(signal.shape[1], round(seconds * rate))
    signal, bands = signal[:, :count], bands[:, :, :count]
    signal = signal - np.median(signal, axis=1, keepdims=True)
    columns = _columns(list(leads))
    index = {lead: i for i, lead in enumerate(leads)}
    lanes_mm = min(LANE * len(bands), MOST_LANES)
    gain = _gain(signal)
    strips = [
        _heights(signal[[index[c[r]] for c in columns if r < len(c)]] * gain, lanes_mm) for r in range(len(columns[0]))
    ]

    gap_mm, top_mm, bottom_mm, side_mm = 5.0, 9.0, 7.0, 5.0
    strip_mm = count / rate * MM_PER_S
    width = 2 * side_mm + len(columns) * strip_mm + (len(columns) - 1) * gap_mm
    width, height = max(width, 90.0), top_mm + bottom_mm + sum(above + below for above, below in strips)
    figure, axes = sheet(width, height)
    time_mm = np.arange(count) / rate * MM_PER_S
    high = height - top_mm
    for r, (above, below) in enumerate(strips):
        middle, low = high - above, high - above - below
        for c, lead in enumerate(column[r] for column in columns if r < len(column)):
            left, i = side_mm + c * (strip_mm + gap_mm), index[lead]
            _shade(axes, bands[:, i], left, strip_mm, low, high, lanes_mm)
            axes.plot(left + time_mm, middle + gain * signal[i], color=INK, lw=0.8, zorder=3)
            axes.text(left + 0.8, high - 1.2, lead, ha="left", va="top", size=8, weight="bold", color=INK, zorder=4)
        high = low
    axes.text(side_mm, height - 2.0, title, ha="left", va="top", size=10, color=INK)
    axes.text(side_mm, 2.0, f"25 mm/s   {gain:g} mm/mV", ha="left", va="bottom", size=7.5, color=INK)
    _legend(axes, len(bands), width - side_mm, 2.0)
    write(figure, path)


def _gain(signal: Array) -> float:
    """mm per mV: the largest at which no lead is more than `TALLEST` mm from peak to peak."""
    largest = float(np.ptp(signal, axis=1).max(initial=0.0))
    return next((g for g in GAINS if largest * g <= TALLEST), TALLEST / max(largest, 1e-12))


def _heights(traces_mm: Array, lanes_mm: float) -> tuple[float, float]:
    """Of one line of leads [n, T], the space above and below the median, in mm: a trace stays below its lead's name
    and above the lanes of the masks, and so within its own line."""
    highest, lowest = float(traces_mm.max(initial=0.0)), float(traces_mm.min(initial=0.0))
    return max(LEAST_ABOVE, highest + NAME), max(LEAST_BELOW, lanes_mm + 0.8 - lowest)


def bands(masks: Array, samples: int) -> Array:
    """Masks [N, R, T] or [N, 1, bins, frames] for `ecg_with_masks`; spectral masks are averaged over bins."""
    if masks.ndim == 4:
        masks = masks.mean(2)
    if masks.shape[-1] != samples:
        masks = masks[..., np.arange(samples) * masks.shape[-1] // samples]
    return masks[:, 0] if masks.shape[1] == 1 else masks


def _bands(masks: Any, shape: tuple[int, int]) -> Array:
    """Masks as [N, leads, T] in 0..1."""
    if masks is None:
        return np.zeros((0, *shape))
    bands = np.asarray(masks, dtype=float)
    if bands.ndim == 2:
        bands = np.broadcast_to(bands[:, None], (len(bands), *shape)) if bands.shape[1] == shape[1] else bands
    if bands.ndim != 3 or bands.shape[1:] != shape:
        raise ValueError(f"masks of shape {np.shape(masks)} do not fit a signal of shape {shape}")
    return np.clip(np.nan_to_num(bands), 0, 1)


def _columns(leads: list[str]) -> list[list[str]]:
    if set(leads) == {lead for column in COLUMNS for lead in column}:
        return [list(column) for column in COLUMNS]
    if len(leads) == 1:
        return [leads]
    half = -(-len(leads) // 2)
    return [leads[:half], leads[half:]]


def _shade(axes: Axes, bands: Array, left: float, width: float, low: float, high: float, lanes: float) -> None:
    """Overlays N masks [N, T] on one strip; each mask also gets a lane of solid colour at the bottom of the strip."""
    lane = lanes / max(1, len(bands))
    for n, mask in enumerate(bands):
        rgba = np.empty((1, len(mask), 4))
        rgba[..., :3] = to_rgb(MASK_COLOURS[n % len(MASK_COLOURS)])
        for opacity, bottom, top in ((0.30, low, high), (0.9, low + n * lane, low + (n + 1) * lane)):
            rgba[..., 3] = opacity * mask
            axes.imshow(
                rgba, extent=(left, left + width, bottom, top), aspect="auto", interpolation="nearest", zorder=1
            )
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


def _legend(axes: Axes, masks: int, right: float, bottom: float) -> None:
    for n in range(masks):
        colour = MASK_COLOURS[n % len(MASK_COLOURS)]
        label = "mask" if masks == 1 else f"mask {n + 1}"
        axes.text(
            right - 14 * (masks - 1 - n),
            bottom,
            f"■ {label}",
            ha="right",
            va="bottom",
            size=7.5,
            color=colour,
            zorder=4,
        )
