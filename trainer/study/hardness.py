"""How hard the pairs of each method were, against its scores on the tasks: a point a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from trainer.evaluate.metrics import SHOWN
from trainer.observe.curves import METHOD_COLOURS, plain_axes
from trainer.study.comparing import values
from trainer.study.config import StudyConfig
from trainer.study.pooling import metric_of
from trainer.study.pretext import FIGURES, pretext
from trainer.study.report import table
from umbra.drawing.paper import blank, plain_text, write

AXES = ("heldout/accuracy", "heldout/effective_rank")
LEAST = 4  # methods for a correlation


def points(config: StudyConfig) -> list[dict[str, Any]]:
    """A row a pre-trained method: what its runs logged last of `AXES` (means over rotations and seeds), and its
    `scores` on each task and fraction of the labels, as in the study's table."""
    said = {row["method"]: row for row in pretext(config)}
    return [
        {key: said[m][key] for key in ("method", "runs", *AXES) if key in said[m]} | {"scores": _scores(config, m)}
        for m in config.compared
        if said.get(m, {}).keys() & {*AXES}
    ]


def _scores(config: StudyConfig, method: str) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "fraction": fraction,
            "metric": metric_of(config, task),
            "value": float(values(config, method, task, fraction)[1].mean()),
        }
        for task in config.tasks
        for fraction in config.fractions
    ]


def correlations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of each of `AXES` with each score over the methods, and the least and the most that
    it is when any one of them is left out. None for fewer than `LEAST` methods, or where one of both does not vary."""
    found = []
    for axis in AXES:
        known = [row for row in rows if axis in row]
        for n, score in enumerate(known[0]["scores"] if known else []):
            x = np.array([row[axis] for row in known])
            y = np.array([row["scores"][n]["value"] for row in known])
            row = {"figure": axis, **{key: score[key] for key in ("task", "fraction", "metric")}, "methods": len(x)}
            row |= dict.fromkeys(("rho", "least", "most"))
            if len(x) >= LEAST and len(set(x)) > 1 and len(set(y)) > 1:
                without = [_rho(np.delete(x, k), np.delete(y, k)) for k in range(len(x))]
                row |= {"rho": _rho(x, y), "least": min(without), "most": max(without)}
            found.append(row)
    return found


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    """0 where one of the two does not vary: then there is no order."""
    return float(spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else 0.0


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The methods, with the numbers that they have in the figure, and the correlations."""
    titles = [f"{s['task']} {100 * s['fraction']:.3g}%, {SHOWN[s['metric']]}" for s in rows[0]["scores"]]
    body = [
        [
            str(number),
            row["method"],
            str(row["runs"]),
            *(f"{row[axis]:.3g}" if axis in row else "" for axis in AXES),
            *(f"{score['value']:.3f}" for score in row["scores"]),
        ]
        for number, row in enumerate(rows, 1)
    ]
    methods = table(["no.", "method", "runs", *(FIGURES[axis] for axis in AXES), *titles], body)
    told = [_told(c) for c in correlations(rows) if c["rho"] is not None]
    if not told:
        return f"{methods}\n\nNo rank correlations: these need {LEAST} methods or more."
    head = ["figure of the pairs", "task", "labels", "methods", "Spearman", "without any one"]
    return f"{methods}\n\n{table(head, told)}"


def _told(c: dict[str, Any]) -> list[str]:
    values = [f"{c['rho']:+.2f}", f"{c['least']:+.2f} to {c['most']:+.2f}"]
    return [FIGURES[c["figure"]], c["task"], f"{100 * c['fraction']:.3g}%", str(c["methods"]), *values]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each of `AXES` that is known and each task: a number a method, a colour a fraction of the labels."""
    scores, known = rows[0]["scores"], [axis for axis in AXES if any(axis in row for row in rows)]
    tasks, fractions = (list(dict.fromkeys(score[key] for score in scores)) for key in ("task", "fraction"))
    colours = {fraction: METHOD_COLOURS[n % len(METHOD_COLOURS)] for n, fraction in enumerate(fractions)}
    figure = blank(2.9 * len(tasks), 2.6 * len(known), dpi=150, layout="constrained")
    grid = figure.subplots(len(known), len(tasks), sharex="row", sharey="col", squeeze=False)
    for axis, line in zip(known, grid):
        for task, axes in zip(tasks, line):
            for number, row in enumerate(rows, 1):
                for score in (s for s in row["scores"] if s["task"] == task and axis in row):
                    at, colour = (row[axis], score["value"]), colours[score["fraction"]]
                    axes.plot(*at, ".", color=colour, ms=4)
                    axes.annotate(str(number), at, (2, 1), textcoords="offset points", size=7, color=colour)
                    axes.set_ylabel(SHOWN[score["metric"]], size=9)
            axes.set_title(plain_text(task), size=9.5, loc="left")
            axes.set_xlabel(FIGURES[axis], size=9)
            plain_axes(axes)
    for fraction, colour in colours.items():
        grid[0, 0].plot([], [], ".", color=colour, label=f"{100 * fraction:.3g} % of the labels")
    grid[0, 0].legend(frameon=False, fontsize=7)
    write(figure, path)
