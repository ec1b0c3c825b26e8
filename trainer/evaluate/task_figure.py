"""The figure of a task: ROC curves and calibration, or the numbers told against the true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from trainer.evaluate.scores import auroc, reliability, scorable
from trainer.observe.curves import METHOD_COLOURS, plain_axes
from umbra.drawing.paper import blank, plain_text, write

MOST = 8
GREY = "#999999"


def task_figure(kind: str, names: list[str], target: np.ndarray, prediction: np.ndarray, path: Path) -> None:
    """Writes a PNG of the test records' targets and predictions `[n, K]`.

    Of classes and labels the `MOST` most frequent are drawn; a number has a panel of its own.
    """
    if kind == "number":
        figure = blank(3.4 * len(names), 3.4, dpi=150, layout="constrained")
        for axes, name, true, told in zip(
            figure.subplots(1, len(names), squeeze=False)[0], names, target.T, prediction.T
        ):
            _numbers(axes, name, true, told)
    else:
        figure = blank(7.6, 3.8, dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        scored = sorted(scorable(target), key=lambda k: -target[:, k].sum())
        _classes(left, right, [(names[k], target[:, k] > 0, prediction[:, k]) for k in scored[:MOST]])
        if len(scored) > MOST:
            left.set_title(f"the {MOST} most frequent of {len(scored)}", size=9, loc="left")
    write(figure, path)


def _classes(left: Any, right: Any, drawn: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        plain_axes(axes)
        axes.set_aspect("equal")
    for number, (name, positive, p) in enumerate(drawn):
        colour = METHOD_COLOURS[number % len(METHOD_COLOURS)]
        false, true, _ = roc_curve(positive, p)
        left.plot(false, true, color=colour, lw=1.4, label=f"{auroc(positive, p):.3f} {plain_text(name)}")
        count, mean, share = reliability(positive, p)
        right.plot(mean, share, color=colour, lw=1)
        right.scatter(mean, share, 4 + 60 * count / count.max(), color=colour)
    left.set_xlabel("1 - specificity", size=9)
    left.set_ylabel("sensitivity", size=9)
    left.legend(title="AUROC", fontsize=7, title_fontsize=7, loc="lower right", frameon=False)
    right.set_xlabel("probability told", size=9)
    right.set_ylabel("share of records with the class", size=9)


def _numbers(axes: Any, name: str, true: np.ndarray, told: np.ndarray) -> None:
    ends = [min(true.min(), told.min()), max(true.max(), told.max())]
    axes.plot(ends, ends, color=GREY, lw=0.8, ls=":")
    axes.scatter(true, told, 6, color=METHOD_COLOURS[0], alpha=0.4, linewidths=0)
    plain_axes(axes)
    axes.set_xlabel(f"{plain_text(name)}, true", size=9)
    axes.set_ylabel(f"{plain_text(name)}, told", size=9)
