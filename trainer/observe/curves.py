"""Plots of the metrics of one run, and of the health of several runs, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.observe.metrics import METRICS, read_metrics
from umbra.drawing.paper import blank, write
from umbra.errors import UserError

Array = NDArray[np.float64]
METHOD_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#878787", "#01665e", "#8c510a")
_PANELS = (
    ("contrastive loss", ("loss",), ("heldout/loss",), "linear"),
    ("contrastive accuracy", ("accuracy",), ("heldout/accuracy",), "from 0"),
    ("masker: penalty", ("penalty",), (), "linear"),
    ("hidden fraction", ("coverage", "hidden", "mask_sameness", "extreme_coverage"), (), "from 0"),
    ("held-out loss by mask", (), ("heldout/masked_loss", "heldout/others_masks_loss"), "linear"),
    ("embeddings", ("alignment", "uniformity"), (), "linear"),
    ("learning rate", ("lr/",), (), "linear"),
    ("gradient norm", ("grad_norm/",), (), "log"),
    ("samples/s", ("samples_per_s",), (), "from 0"),
    ("fraction of time waiting for data", ("data_wait",), (), "from 0"),
)


def loss_curves(metrics_jsonl_path: str | Path, path: str | Path) -> None:
    """Plots `metrics.jsonl` against steps: loss (also on held-out patients), accuracy, penalty and so on.

    Only panels with data are drawn. Raises `ValueError` if there are none.
    """
    rows = read_metrics(metrics_jsonl_path)
    names = sorted({name for row in rows for name in row})
    panels = [
        (title, _series(names, keys), _series(names, held_out), scale) for title, keys, held_out, scale in _PANELS
    ]
    panels = [panel for panel in panels if panel[1] or panel[2]]
    if not panels:
        raise ValueError(f"{metrics_jsonl_path} has no rows to draw")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = blank(4.2 * columns, 2.9 * lines, dpi=130, layout="constrained")
    for place, (title, keys, held_out, scale) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, name in enumerate([*keys, *held_out]):
            steps, values = _points(rows, name)
            style = {"marker": "o", "ms": 3.5, "lw": 1.2} if name in held_out else {"lw": 1.2}
            label = name.rpartition("/")[2]
            if keys and held_out:
                label = "held-out patients" if name in held_out else "training"
            axes.plot(steps, values, color=METHOD_COLOURS[number], label=label, **style)
            if scale == "log" and np.any(values > 0):
                axes.set_yscale("log")
        if scale == "from 0":
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-6))
        axes.set_title(title, size=10, loc="left")
        plain_axes(axes)
        if len(keys) + len(held_out) > 1:
            axes.legend(frameon=False, fontsize=8)
        if place >= len(panels) - columns:
            axes.set_xlabel("step", size=9)
    write(figure, path)


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
    panels = [name for name in _SHARED if any(name in row for found in rows.values() for row in found)]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = blank(3.4 * columns, 2.4 * lines, dpi=130, layout="constrained")
    for place, name in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, (run, found) in enumerate(rows.items()):
            label = Path(run).resolve().name
            axes.plot(*_points(found, name), color=METHOD_COLOURS[number % 8], label=label, lw=1.1)
        axes.set_title(name, size=10, loc="left")
        plain_axes(axes)
        if place == 0:
            axes.legend(frameon=False, fontsize=8)
    write(figure, path)


def _series(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [name for key in keys for name in names if name == key or (key.endswith("/") and name.startswith(key))]


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


def plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
