"""Draws one synthetic ECG of each rhythm on ECG paper: `python -m docs.make_synthetic_figure [first patient]`.

Classic layout: three rows of four leads, 2.5 s each, and lead II as rhythm strip; 25 mm/s, 10 mm/mV.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from PIL import Image

from sharding import synthetic
from umbra.leads import CANONICAL

TITLES = {
    synthetic.SINUS: "Sinus rhythm",
    synthetic.BRADYCARDIA: "Sinus bradycardia",
    synthetic.TACHYCARDIA: "Sinus tachycardia",
    synthetic.FIBRILLATION: "Atrial fibrillation",
    synthetic.VENTRICULAR: "Ventricular premature beats",
}
LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
WIDTH, HEIGHT, ROW, LEFT = 270, 92, 21, 13  # mm
DPI = 100


def main(first: int = 60) -> None:
    chosen = one_of_each_rhythm(first)
    signals = synthetic.render(chosen)
    figure = plt.figure(figsize=(WIDTH / 25.4, HEIGHT * len(chosen) / 25.4), dpi=DPI)
    for row, (recording, leads) in enumerate(zip(chosen, signals)):
        axes = figure.add_axes((0, 1 - (row + 1) / len(chosen), 1, 1 / len(chosen)))
        paper(axes)
        trace(axes, leads, recording.rate)
        who = recording.patient
        axes.text(LEFT, HEIGHT - 4.5, f"{TITLES[recording.rhythm]}", fontsize=9, weight="bold", va="center")
        axes.text(WIDTH - 4, HEIGHT - 4.5, f"{who.sex}, {who.age} years", fontsize=8, ha="right", va="center")
    axes.text(WIDTH - 4, 2, "25 mm/s   10 mm/mV   synthetic", fontsize=6.5, ha="right", va="center")
    save(figure, Path(__file__).parent / "images" / "synthetic.png")


def one_of_each_rhythm(first: int) -> list[synthetic.Recording]:
    found: dict[str, synthetic.Recording] = {}
    patient = first
    while len(found) < len(TITLES):
        recording = synthetic.draw(0, patient, 0)
        found.setdefault(recording.rhythm, recording)
        patient += 1
    return [found[rhythm] for rhythm in TITLES]


def paper(axes: Axes) -> None:
    """A pink millimetre grid, heavier every 5 mm; the axes' unit is the millimetre."""
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    for step, colour, width in ((1, "#fbe3e3", 0.35), (5, "#f0b0b0", 0.55)):
        lines = [[(x, 0), (x, HEIGHT)] for x in range(0, WIDTH + 1, step)]
        lines += [[(0, y), (WIDTH, y)] for y in range(0, HEIGHT + 1, step)]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width))
    axes.plot([0, WIDTH], [HEIGHT, HEIGHT], color="white", linewidth=6)


def trace(axes: Axes, leads: NDArray[np.float64], rate: float) -> None:
    """Draws `leads` [12, samples] in mV; each row begins with the calibration pulse of 1 mV and 0.2 s."""
    quarter = int(2.5 * rate)
    for row, names in enumerate((*LAYOUT, ("II",))):
        middle = HEIGHT - 20 - ROW * row
        pulse = LEFT - 9 + np.array([0, 1, 1, 6, 6, 7])
        axes.plot(pulse, middle + np.array([0, 0, 10, 10, 0, 0]), color="black", linewidth=0.7)
        for column, name in enumerate(names):
            part = slice(column * quarter, (column + 1) * quarter) if len(names) > 1 else slice(0, 4 * quarter)
            values = leads[CANONICAL.index(name), part]
            x = LEFT + 25 * np.arange(part.start, part.start + len(values)) / rate
            axes.plot(x, middle + 10 * (values - np.median(values)), color="black", linewidth=0.7)
            axes.text(x[0] + 1, middle + 8, name, fontsize=7, va="center")
            if column:
                axes.plot([x[0], x[0]], [middle - 2.5, middle + 2.5], color="black", linewidth=0.7)


def save(figure: plt.Figure, path: Path) -> None:
    """Saves with a palette of 48 colours, which keeps the file small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    path.parent.mkdir(exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
