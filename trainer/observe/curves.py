"""Plots of the metrics of one run, as PNG or SVG, and of the health of several runs, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from trainer.observe.metrics import METRICS, read_metrics
from trainer.observe.series import Panel, panels, says_something, series
from umbra.drawing.paper import blank, write
from umbra.errors import UserError

METHOD_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#878787", "#01665e", "#8c510a")
WIDTH, HEIGHT = 4.2, 2.9  # inches of a panel


def loss_curves(metrics_jsonl_path: str | Path, path: str | Path) -> bool:
    """Plots `metrics.jsonl` against steps: loss (also on held-out patients), accuracy, masks and so on.

    Draws only what says something (`series.panels`); returns whether that is anything, and else writes no file.
    """
    found = panels(read_metrics(metrics_jsonl_path))
    if not found:
        return False
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = blank(WIDTH * columns, HEIGHT * lines, dpi=130, layout="constrained")
    for place, panel in enumerate(found):
        axes = figure.add_subplot(lines, columns, place + 1)
        draw_panel(axes, panel)
        if place >= len(found) - columns:
            axes.set_xlabel("step", size=9)
    write(figure, path)
    return True


def panel_svg(panel: Panel) -> str:
    """One panel as an `<svg>` element, its texts as text; the same panel gives the same bytes."""
    figure = blank(WIDTH, HEIGHT, dpi=72, layout="constrained")
    axes = figure.add_subplot()
    draw_panel(axes, panel)
    axes.set_xlabel("step", size=9)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": panel.title}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :]


def draw_panel(axes: Axes, panel: Panel) -> None:
    """The curves of one panel, against steps."""
    for number, s in enumerate(panel.series):
        style: dict[str, Any] = {"marker": "o", "ms": 3.0} if s.rare and len(s.steps) < 100 else {}
        width = 1.2 if len(s.steps) < 2000 else 0.6
        axes.plot(s.steps, s.values, color=METHOD_COLOURS[number], label=s.label, lw=width, **style)
    if panel.scale == "log" and any(np.any(s.values > 0) for s in panel.series):
        axes.set_yscale("log")
    if panel.scale == "from 0":
        axes.set_ylim(0, 1.08 * max(1e-6, *(float(s.values.max()) for s in panel.series)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
    axes.set_title(panel.title, size=10, loc="left")
    plain_axes(axes)
    if len(panel.series) > 1 or panel.series[0].rare:
        axes.legend(frameon=False, fontsize=8)


_SHARED = ("loss", "heldout/loss", "accuracy", "coverage", "hidden", "mask_sameness", "mask_contrast") + (
    *("heldout/masked_loss", "heldout/others_masks_loss", "alignment", "uniformity", "alarms"),
)


def runs_together(runs: Sequence[str | Path], path: str | Path) -> None:
    """Plots the health metrics of several runs against steps: a panel per metric, a line per run.

    runs: run directories. Raises `UserError` for one without metrics.
    """
    rows = {str(run): read_metrics(Path(run) / METRICS) if (Path(run) / METRICS).is_file() else [] for run in runs}
    if missing := [run for run, found in rows.items() if not found]:
        raise UserError(f"{missing[0]} has no {METRICS} with rows: give run directories")
    every = {name: [series(found, name) for found in rows.values()] for name in _SHARED}
    told = [name for name in _SHARED if says_something(np.concatenate([s.values for s in every[name]]))]
    if not told:
        raise UserError(f"{runs[0]}: nothing has changed yet in these runs; draw them after a few log lines")
    columns = min(4, len(told))
    lines = -(-len(told) // columns)
    figure = blank(3.4 * columns, 2.4 * lines, dpi=130, layout="constrained")
    for place, name in enumerate(told):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, (run, s) in enumerate(zip(rows, every[name])):
            label = Path(run).resolve().name
            axes.plot(s.steps, s.values, color=METHOD_COLOURS[number % 8], label=label, lw=1.1)
        axes.set_title(name, size=10, loc="left")
        plain_axes(axes)
        if place == 0:
            axes.legend(frameon=False, fontsize=8)
    write(figure, path)


def plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
