"""Plots as PNG: recordings on ECG paper, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.report.signals import nan_median
from umbra import leads
from umbra.drawing.paper import INK, MM_PER_S, blank, sheet, write

Array = NDArray[Any]


ACCENT = "#2f5d8a"
GAINS = (10.0, 5.0, 2.5, 1.0, 0.5, 0.1, 0.01, 1e-3, 1e-4)
DPI = 110


def draw_ecg(path: Path, mv: Array, rate: float, names: Sequence[str]) -> None:
    """Writes a PNG of the first 10 s of `mv` [leads, samples] on ECG paper, 25 mm/s and 10 mm/mV; NaN leaves a gap.

    All twelve leads over 10 s are laid out as usual, 3 x 4 leads of 2.5 s above a rhythm strip of lead II; others as
    one lead per line. Each strip is centred on its median. If the amplitude does not fit the paper, the gain is reduced
    and printed in red.
    """
    length = min(mv.shape[1], round(10 * rate))
    strips, pitch = _strips(names, length, rate)
    values = {s: mv[s[0], s[1] : s[2]] - nan_median(mv[s[0], s[1] : s[2]]) for s in strips}
    highest = max((float(np.nanmax(np.abs(v))) for v in values.values() if np.isfinite(v).any()), default=0.0)
    gain = next((g for g in GAINS if highest * g <= 1.6 * pitch), GAINS[-1])
    side, top, bottom = 14.0, 6.0, 8.0
    width = side + length / rate * MM_PER_S + 5.0
    height = top + pitch * (1 + max(s[3] for s in strips)) + bottom
    figure, axes = sheet(width, height, DPI)
    for strip, line in values.items():
        lead, start, stop, row = strip
        left, middle = side + start / rate * MM_PER_S, height - top - (row + 0.55) * pitch
        time = np.arange(stop - start) / rate * MM_PER_S
        axes.plot(left + time, middle + gain * line, color=INK, lw=0.75, clip_on=True)
        axes.text(left + 0.8, middle + 0.42 * pitch, names[lead], size=8, weight="bold", color=INK, va="center")
        if start:
            axes.plot([left, left], [middle - 2.5, middle + 2.5], color=INK, lw=0.8)
        else:  # 1 mV for 0.2 s
            pulse = middle + min(10.0, gain) * np.array([0, 0, 1, 1, 0, 0])
            axes.plot(left - 10 + np.array([0, 1.5, 1.5, 6.5, 6.5, 8]), pulse, color=INK, lw=0.75)
    scale = f"25 mm/s   {gain:g} mm/mV"
    axes.text(
        side,
        2.5,
        scale,
        size=7.5,
        color=INK if gain == GAINS[0] else "#b00020",
        weight=400 if gain == GAINS[0] else 700,
    )
    write(figure, path)


def _strips(names: Sequence[str], length: int, rate: float) -> tuple[list[tuple[int, int, int, int]], float]:
    """((lead's row in the array, first and one past the last sample, line on the paper) of each strip, mm per line)."""
    if set(names) != set(leads.CANONICAL) or length < round(10 * rate):
        return [(lead, 0, length, lead) for lead in range(len(names))], 16.0
    cuts = [round(c * length / 4) for c in range(5)]
    place = [(names.index(lead), i // 3, i % 3) for i, lead in enumerate(leads.CANONICAL)]
    strips = [(lead, cuts[column], cuts[column + 1], row) for lead, column, row in place]
    return [*strips, (names.index("II"), 0, length, 3)], 24.0


def draw_histograms(path: Path, of_sources: Mapping[str, Array], edges: Array, label: str, usual: tuple) -> None:
    """A histogram of each source, stacked on a shared axis, with its median and the `usual` range shaded.

    Values beyond the edges are counted in the outermost bins.
    """
    figure = blank(8.6, 0.75 + 0.95 * len(of_sources), DPI)
    grid = figure.subplots(len(of_sources), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(0.16, 0.5 / figure.get_figheight(), 0.985, 1 - 0.12 / figure.get_figheight(), hspace=0.25)
    for axes, (source, values) in zip(grid, of_sources.items()):
        values = values[np.isfinite(values)]
        shares = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
        axes.axvspan(*usual, color="#eef2f6", zorder=0)
        axes.stairs(100 * shares, edges, fill=True, color=ACCENT, alpha=0.85)
        if len(values):
            middle = float(np.median(values))
            axes.axvline(min(max(middle, edges[0]), edges[-1]), color="#b3402a", lw=1.2)
            axes.text(
                0.99,
                0.86,
                f"median {middle:.3g}",
                transform=axes.transAxes,
                ha="right",
                va="top",
                size=8.5,
                color="#b3402a",
            )
        if edges[0] > 0 and edges[1] / edges[0] > 1 and np.ptp(np.diff(edges)) > 1e-9:
            axes.set_xscale("log")
            ticks = [t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if edges[0] <= t <= edges[-1]]
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        axes.set_xlim(edges[0], edges[-1])
        axes.set_yticks([])
        axes.set_ylabel(_short(source), rotation=0, ha="right", va="center", size=9, parse_math=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    grid[-1].set_xlabel(label, size=9)
    write(figure, path)


def _short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
