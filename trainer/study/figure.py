"""The dot plot of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluate.metrics import SHOWN
from trainer.observe.curves import METHOD_COLOURS, plain_axes
from umbra.drawing.paper import blank, write


def study_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Dot plot with intervals: a panel per task and label fraction, a line per method, in the order they come.

    rows: dicts `method`, `task`, `fraction` (0..1), `metric`, `value`, `low`, `high` (the last two may be missing).
    Raises `ValueError` if there are no rows.
    """
    if not rows:
        raise ValueError("a study without rows cannot be drawn")
    tasks, methods = _unique(rows, "task"), _unique(rows, "method")
    fractions = sorted(_unique(rows, "fraction"), reverse=True)
    height = 0.9 + len(tasks) * (0.95 + 0.3 * len(methods))
    figure = blank(1.9 + 3.1 * len(fractions), height, dpi=150, layout="constrained")
    grid = figure.subplots(len(tasks), len(fractions), sharex="row", sharey=True, squeeze=False)
    for t, task in enumerate(tasks):
        for f, fraction in enumerate(fractions):
            axes = grid[t, f]
            cell = [row for row in rows if row["task"] == task and row["fraction"] == fraction]
            for row in cell:
                _dot(axes, row, methods.index(row["method"]))
            axes.set_title(f"{task}, {100 * fraction:g} % of the labels", size=9.5, loc="left")
            plain_axes(axes)
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=5)
            if cell:
                axes.set_xlabel(SHOWN[cell[0]["metric"]], size=9)
    grid[0, 0].set_yticks(range(len(methods)), methods)
    grid[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    write(figure, path)


def _dot(axes: Any, row: Mapping[str, Any], place: int) -> None:
    colour = METHOD_COLOURS[place % len(METHOD_COLOURS)]
    if row.get("low") is not None and row.get("high") is not None:
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2, solid_capstyle="round")
    axes.plot([row["value"]], [place], "o", color=colour, ms=6)
    axes.annotate(
        f"{row['value']:.3f}",
        (row["value"], place),
        (0, 5),
        textcoords="offset points",
        ha="center",
        size=7,
        color=colour,
    )


def _unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))
