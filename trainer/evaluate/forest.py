"""The forest plot of a comparison: scores with intervals, and paired differences around zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.evaluate.compare import Difference, Scored
from trainer.evaluate.metrics import SHOWN
from trainer.observe.curves import METHOD_COLOURS, plain_axes
from umbra.drawing.paper import blank, plain_text, write

GREY = "#999999"
LINE = 0.28  # inches


def forest(results: Sequence[Scored], found: Sequence[Difference], path: Path) -> None:
    """Writes a PNG: for each task a line per result, on the right its difference to the task's reference."""
    tasks = list(dict.fromkeys(r.task for r in results))
    counts = [sum(r.task == task for r in results) for task in tasks]
    figure = blank(9.0, sum(LINE * n + 0.75 for n in counts) + 0.2, dpi=150, layout="constrained")
    grid = figure.subplots(len(tasks), 2, squeeze=False, height_ratios=[LINE * n + 0.5 for n in counts])
    for (left, right), task in zip(grid, tasks):
        mine = [r for r in results if r.task == task]
        gaps = {id(d.other): d for d in found if d.figure == mine[0].metric and not d.why and d.other.task == task}
        for place, r in enumerate(mine):
            colour = METHOD_COLOURS[place % len(METHOD_COLOURS)]
            _dot(left, place, r.value, r.low, r.high, colour)
            if d := gaps.get(id(r)):
                _dot(right, place, d.value, d.low, d.high, colour)
        _axes(left, right, task, SHOWN[mine[0].metric], [_short(r) for r in mine])
    write(figure, path)


def _axes(left: Any, right: Any, task: str, figure: str, lines: list[str]) -> None:
    for axes in (left, right):
        plain_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(lines) - 0.5, -0.5)
    left.set_yticks(range(len(lines)), map(plain_text, lines), fontsize=7)
    left.set_title(f"{plain_text(task)}: {figure}", size=9, loc="left")
    right.set_yticks([])
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    right.set_title("difference, paired by patients", size=9, loc="left")


def _dot(axes: Any, place: int, value: float, low: float | None, high: float | None, colour: str) -> None:
    if low is not None and high is not None and math.isfinite(low + high):
        axes.plot([low, high], [place, place], color=colour, lw=2, solid_capstyle="round")
    axes.plot([value], [place], "o", color=colour, ms=5)


def _short(r: Scored) -> str:
    name = r.encoder if len(r.encoder) <= 30 else "..." + r.encoder[-27:]
    return f"{name}, {r.mode}, {r.fraction:.4g}"
