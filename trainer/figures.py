"""Pictures, drawn without a display: an ECG with its masks on ECG paper, the curves of a run, a study's dot plot.

`python -m trainer.figures masks RUN [ecgs=300]` draws ECGs with their masks and measures where these fall
(trainer/meaning.py),
`python -m trainer.figures curves OUT.png RUN [RUN ...]` the health of several runs together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sharding.config import UserError, command
from trainer.metrics import METRICS, read_metrics

Array = NDArray[np.float64]

MASK_COLOURS = ("#2166ac", "#1b7837", "#762a83", "#b35806", "#01a0a8", "#4d4d4d") + (
    *("#8a7d00", "#c2185b", "#5d4037", "#5c6bc0", "#7cb342", "#000000"),
)
METHOD_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#878787", "#01665e", "#8c510a")
PAPER, FINE, COARSE, INK = "#fff7f6", "#f7d9d6", "#eda9a4", "#1c1c1c"
MM_PER_S, MM_PER_MV = 25.0, 10.0
COLUMNS = (("I", "II", "III", "aVR", "aVL", "aVF"), ("V1", "V2", "V3", "V4", "V5", "V6"))


# ---- ECG on paper ----


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
    None; rate in Hz. Limb leads stand left and chest leads right; other lead names fill two columns in order.
    Raises `ValueError` if the shapes do not fit.
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
    figure, axes = _sheet(width, height)
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
    _save(figure, path)


def bands(masks: Array, samples: int) -> Array:
    """Masks [N, R, T] or [N, 1, bins, frames] for `ecg_with_masks`; of a spectrum the mean over its bins."""
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


def _sheet(width: float, height: float) -> tuple[Figure, Any]:
    """A figure whose data units are millimetres of ECG paper, with its grid of 1 and 5 mm."""
    figure = Figure(figsize=(width / 25.4, height / 25.4), dpi=150, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for step, colour, weight in ((1, FINE, 0.4), (5, COARSE, 0.6)):
        lines = [((x, 0), (x, height)) for x in np.arange(0, width + step, step)]
        lines += [((0, y), (width, y)) for y in np.arange(0, height + step, step)]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=weight, zorder=0))
    return figure, axes


def _shade(axes: Any, bands: Array, left: float, width: float, low: float, high: float) -> None:
    """Overlays N masks [N, T] on one strip; each mask also gets its own lane of solid colour at the strip's foot."""
    import matplotlib.colors

    lane = min(1.2, 6 / max(1, len(bands)))
    for n, mask in enumerate(bands):
        rgba = np.empty((1, len(mask), 4))
        rgba[..., :3] = matplotlib.colors.to_rgb(MASK_COLOURS[n % len(MASK_COLOURS)])
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


# ---- a synthetic ECG, so that a picture of masks need not show a patient ----

# Waves of one beat: time from R in s, width (standard deviation) in s, and a vector (x to the left, y to the feet,
# z to the front) in mV. Sum of Gaussians after McSharry et al., IEEE Trans Biomed Eng 50(3), 2003, on a heart vector as
# in Sameni et al., EURASIP J Adv Signal Process 2007.
_WAVES = (
    ("P", -0.165, 0.022, (0.08, 0.11, 0.04)),
    ("Q", -0.026, 0.008, (-0.14, -0.06, 0.20)),
    ("R", 0.000, 0.0115, (1.05, 0.85, 0.00)),
    ("S", 0.028, 0.0115, (-0.12, -0.20, -0.75)),
    ("T1", 0.250, 0.050, (0.18, 0.14, 0.10)),
    ("T2", 0.290, 0.028, (0.13, 0.10, 0.07)),
)
_CHEST = {
    "V1": (-0.20, 0.02, 1.00),
    "V2": (0.32, 0.06, 1.15),
    "V3": (0.50, 0.10, 1.05),
    "V4": (0.90, 0.22, 0.70),
    "V5": (0.95, 0.20, 0.30),
    "V6": (0.80, 0.20, 0.05),
}


def synthetic_example(leads: Sequence[str], samples: int, rate: float, seed: int = 0) -> Array:
    """A synthetic sinus rhythm, [leads, samples] in mV: nobody's recording, the same for the same arguments.

    Each beat is a sum of Gaussians of a heart vector. The limb leads follow from I and II: III = II - I (Einthoven),
    aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2 (Goldberger). A lead of another name shows lead II.
    """
    random = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    beats = 0.35 + np.cumsum(0.82 + 0.03 * random.standard_normal(int(samples / rate / 0.6) + 4)) - 0.82
    vector = np.zeros((3, samples))
    for _, shift, width, amplitude in _WAVES:
        bumps = np.exp(-0.5 * ((time[None] - beats[:, None] - shift) / width) ** 2).sum(0)
        vector += np.asarray(amplitude)[:, None] * bumps
    one = vector[0] * 0.75
    two = 0.40 * vector[0] + 0.90 * vector[1]
    known = {
        "I": one,
        "II": two,
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVL": one - two / 2,
        "aVF": two - one / 2,
        **{name: np.asarray(weights) @ vector for name, weights in _CHEST.items()},
    }
    return np.stack([known.get(lead, two) for lead in leads])


# ---- curves of a run ----

_PANELS = (
    ("contrastive loss", ("loss",), ("heldout/loss",), "linear"),
    ("share of pairs found", ("accuracy",), ("heldout/accuracy",), "from 0"),
    ("masker: penalty", ("penalty",), (), "linear"),
    ("share hidden", ("coverage", "hidden", "mask_sameness", "extreme_coverage"), (), "from 0"),
    ("held-out loss by mask", (), ("heldout/masked_loss", "heldout/others_masks_loss"), "linear"),
    ("embeddings", ("alignment", "uniformity"), (), "linear"),
    ("learning rate", ("lr/",), (), "linear"),
    ("gradient norm", ("grad_norm/",), (), "log"),
    ("samples/s", ("samples_per_s",), (), "from 0"),
    ("share of time waiting for data", ("data_wait",), (), "from 0"),
)


def loss_curves(metrics_jsonl_path: str | Path, path: str | Path) -> None:
    """Draws `metrics.jsonl` over the steps: loss (and on held-out patients), accuracy, penalty and so on.

    Only panels with numbers are drawn. Raises `ValueError` if there are none.
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
    figure = Figure(figsize=(4.2 * columns, 2.9 * lines), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
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
        _plain(axes)
        if len(keys) + len(held_out) > 1:
            axes.legend(frameon=False, fontsize=8)
        if place >= len(panels) - columns:
            axes.set_xlabel("step", size=9)
    _save(figure, path)


_SHARED = ("loss", "heldout/loss", "accuracy", "coverage", "hidden", "mask_sameness", "mask_contrast") + (
    *("heldout/masked_loss", "heldout/others_masks_loss", "alignment", "uniformity", "alarms"),
)


def runs_together(runs: Sequence[str | Path], path: str | Path) -> None:
    """Draws the health of several runs over their steps, a panel a figure, a line a run.

    runs: run directories. Raises `UserError` for one without metrics.
    """
    rows = {str(run): read_metrics(Path(run) / METRICS) if (Path(run) / METRICS).is_file() else [] for run in runs}
    if missing := [run for run, found in rows.items() if not found]:
        raise UserError(f"{missing[0]} has no {METRICS} with rows: give run directories")
    panels = [name for name in _SHARED if any(name in row for found in rows.values() for row in found)]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * lines), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, (run, found) in enumerate(rows.items()):
            label = Path(run).resolve().name
            axes.plot(*_points(found, name), color=METHOD_COLOURS[number % 8], label=label, lw=1.1)
        axes.set_title(name, size=10, loc="left")
        _plain(axes)
        if place == 0:
            axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _series(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [name for key in keys for name in names if name == key or (key.endswith("/") and name.startswith(key))]


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


# ---- a study ----


def study_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Dot plot with intervals: a panel per task and label fraction, a line per method, in the order they come.

    rows: dicts `method`, `task`, `fraction` (0..1), `auroc`, `low`, `high` (0..1; `low` and `high` may be missing).
    Raises `ValueError` if there are no rows.
    """
    if not rows:
        raise ValueError("a study without rows cannot be drawn")
    tasks, methods = _unique(rows, "task"), _unique(rows, "method")
    fractions = sorted(_unique(rows, "fraction"), reverse=True)
    height = 0.9 + len(tasks) * (0.75 + 0.3 * len(methods))
    figure = Figure(figsize=(1.9 + 3.1 * len(fractions), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(tasks), len(fractions), sharex=True, sharey=True, squeeze=False)
    for t, task in enumerate(tasks):
        for f, fraction in enumerate(fractions):
            axes = grid[t, f]
            cell = [row for row in rows if row["task"] == task and row["fraction"] == fraction]
            for row in cell:
                _dot(axes, row, methods.index(row["method"]))
            axes.set_title(f"{task}, {100 * fraction:g} % of the labels", size=9.5, loc="left")
            _plain(axes)
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=5)
            if t == len(tasks) - 1:
                axes.set_xlabel("AUROC", size=9)
    grid[0, 0].set_yticks(range(len(methods)), methods)
    grid[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    _save(figure, path)


def _dot(axes: Any, row: Mapping[str, Any], place: int) -> None:
    colour = METHOD_COLOURS[place % len(METHOD_COLOURS)]
    if row.get("low") is not None and row.get("high") is not None:
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2, solid_capstyle="round")
    axes.plot([row["auroc"]], [place], "o", color=colour, ms=6)
    axes.annotate(
        f"{row['auroc']:.3f}",
        (row["auroc"], place),
        (0, 5),
        textcoords="offset points",
        ha="center",
        size=7,
        color=colour,
    )


def _unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def main(argv: list[str]) -> None:
    from trainer import meaning

    if argv[:1] == ["masks"]:
        return meaning.main(argv[1:])
    if argv[:1] == ["curves"] and len(argv) > 2 and not Path(argv[1]).is_dir():
        runs_together(argv[2:], argv[1])
        return print(f"written: {argv[1]}")
    raise UserError(f"say what to draw: {meaning.USAGE}, or python -m trainer.figures curves OUT.png RUN [RUN ...]")


if __name__ == "__main__":
    command(main)
