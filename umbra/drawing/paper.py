"""ECG paper, drawn without a display: axes in millimetres, and figures written as PNG.

25 mm/s and 10 mm/mV with a grid of 1 and 5 mm, the standard of printed ECGs. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from umbra.files import atomic

PAPER, FINE, COARSE, INK = "#fff7f6", "#f7d9d6", "#eda9a4", "#1c1c1c"
MM_PER_S, MM_PER_MV = 25.0, 10.0


def blank(width: float, height: float, dpi: float, layout: Literal["constrained"] | None = None) -> Figure:
    """An empty figure of `width` x `height` inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def sheet(width: float, height: float, dpi: float = 150) -> tuple[Figure, Axes]:
    """A figure of ECG paper, `width` x `height` mm, and its axes; one data unit is one millimetre."""
    figure = blank(width / 25.4, height / 25.4, dpi)
    figure.set_facecolor(PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for step, colour, weight in ((1, FINE, 0.4), (5, COARSE, 0.6)):
        lines = [((x, 0.0), (x, height)) for x in np.arange(0, width + step, step)]
        lines += [((0.0, y), (width, y)) for y in np.arange(0, height + step, step)]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=weight, zorder=0))
    return figure, axes


def plain_text(words: str) -> str:
    """Words of a user for a figure: matplotlib would set what stands between two $ as a formula."""
    return words.replace("$", r"\$")


def write(figure: Figure, path: str | Path) -> None:
    """Writes a PNG atomically and creates its folder; the same figure gives the same bytes."""
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
