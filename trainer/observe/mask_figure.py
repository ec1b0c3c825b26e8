"""An ECG on ECG paper with its masks, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from umbra.drawing.paper import INK, MM_PER_MV, MM_PER_S, sheet, write

Array = NDArray[np.float64]
MASK_COLOURS = ("#2166ac", "#1b7837", "#762a83", "#b35806", "#01a0a8", "#4d4d4d") + (
    *("#8a7d00", "#c2185b", "#5d4037", "#5c6bc0", "#7cb342", "#000000"),
)
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
    columns = _columns(list(leads))
    rows = max(len(column) for column in columns)

    pitch_mm, gap_mm, top_mm, bottom_mm, side_mm = 22.0, 5.0, 9.0, 7.0, 5.0
    strip_mm = count / rate * MM_PER_S
    width = 2 * side_mm + len(columns) * strip_mm + (len(columns) - 1) * gap_mm
    width, height = max(width, 90.0), top_mm + bottom_mm + rows * pitch_mm
    figure, axes = sheet(width, height)
    time_mm = np.arange(count) / rate * MM_PER_S
    for c, column in enumerate(columns):
        left = side_mm + c * (strip_mm + gap_mm)
        for r, lead in enumerate(column):
            middle = height - top_mm - (r + 0.55) * pitch_mm
            low, high = middle - 0.45 * pitch_mm, middle + 0.55 * pitch_mm
            index = list(leads).index(lead)
            _shade(axes, bands[:, index], left, strip_mm, low, high)
            axes.plot(left + time_mm, middle + MM_PER_MV * signal[index], color=INK, lw=0.8, zorder=3)
            axes.text(left + 0.8, high - 1.2, lead, ha="left", va="top", size=8, weight="bold", color=INK, zorder=4)
    axes.text(side_mm, height - 2.0, title, ha="left", va="top", size=10, color=INK)
    axes.text(side_mm, 2.0, "25 mm/s   10 mm/mV", ha="left", va="bottom", size=7.5, color=INK)
    _legend(axes, len(bands), width - side_mm, 2.0)
    write(figure, path)


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


def _shade(axes: Any, bands: Array, left: float, width: float, low: float, high: float) -> None:
    """Overlays N masks [N, T] on one strip; each mask also gets a lane of solid colour at the bottom of the strip."""
    lane = min(1.2, 6 / max(1, len(bands)))
    for n, mask in enumerate(bands):
        rgba = np.empty((1, len(mask), 4))
        rgba[..., :3] = to_rgb(MASK_COLOURS[n % len(MASK_COLOURS)])
        for opacity, bottom, top in ((0.30, low, high), (0.9, low + n * lane, low + (n + 1) * lane)):
            rgba[..., 3] = opacity * mask
            axes.imshow(
                rgba, extent=(left, left + width, bottom, top), aspect="auto", interpolation="nearest", zorder=1
            )
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


def _legend(axes: Any, masks: int, right: float, bottom: float) -> None:
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
