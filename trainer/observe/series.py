"""Which curves of a run are drawn: the panels, and the rule that a figure which says nothing is left out.

A metric says something once it has had two values that differ. Of two equal ones in a panel the first is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]
SAME = 1e-6  # values that differ by less than this part of the largest are the same


@dataclass(frozen=True)
class Series:
    """One metric against steps, without its missing values; `rare` ones are measured at a few steps only."""

    name: str
    label: str
    steps: Array
    values: Array

    @property
    def rare(self) -> bool:
        return self.name.startswith(("heldout/", "probe/"))


@dataclass(frozen=True)
class Panel:
    """What is drawn together; `scale`: linear, log, or `from 0`."""

    title: str
    scale: str
    series: list[Series]


# Title, scale, and (metric or prefix ending in /, label); an empty label: the last word of the name.
_PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("contrastive loss", "linear", (("loss", "training"), ("heldout/loss", "held-out patients"))),
    ("contrastive accuracy", "from 0", (("accuracy", "training"), ("heldout/accuracy", "held-out patients"))),
    (
        "held-out loss by mask",
        "linear",
        (
            ("heldout/loss", "as in training"),
            ("heldout/masked_loss", "own mask alone"),
            ("heldout/others_masks_loss", "another ECG's mask"),
        ),
    ),
    (
        "masked share",
        "from 0",
        (
            ("coverage", "mean"),
            ("hidden", "hidden (above 0.9)"),
            ("extreme_coverage", "ECGs below 5 or above 95 %"),
            ("mask_overlap", "in several masks"),
        ),
    ),
    ("sameness of the masks (1: all ECGs have one)", "from 0", (("mask_sameness", ""),)),
    ("contrast of the masks, log-odds", "from 0", (("mask_contrast", ""),)),
    ("penalty of the masker", "linear", (("penalty", ""),)),
    ("embeddings", "linear", (("alignment", ""), ("uniformity", ""))),
    ("probes of held-out patients (AUROC, R2)", "linear", (("probe/", ""),)),
    ("effective rank of held-out features", "from 0", (("heldout/effective_rank", ""),)),
    ("temperature", "linear", (("temperature", ""),)),
    ("learning rate", "linear", (("lr/", ""),)),
    ("gradient norm", "log", (("grad_norm/", ""),)),
    ("ECG/s", "from 0", (("samples_per_s", ""),)),
    ("share of time waiting for data", "from 0", (("data_wait", ""),)),
    ("share of the peak FLOP/s (MFU)", "from 0", (("mfu", ""),)),
    ("alarms", "from 0", (("alarms", ""),)),
)


def panels(rows: Rows) -> list[Panel]:
    """The panels of a run's metrics that say something; one that repeats curves of earlier panels is left out."""
    out: list[Panel] = []
    drawn: set[str] = set()
    for title, scale, metrics in _PANELS:
        found = [series(rows, name, label) for key, label in metrics for name in _names(rows, key)]
        chosen = _different([s for s in found if says_something(s.values)])
        if any(s.name not in drawn for s in chosen):
            out.append(Panel(title, scale, chosen))
            drawn |= {s.name for s in chosen}
    return out


def series(rows: Rows, name: str, label: str = "") -> Series:
    """The values of a metric that are there and finite."""
    pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    steps, values = zip(*pairs) if pairs else ((), ())
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    finite = np.isfinite(y)
    return Series(name, label or name.rpartition("/")[2].replace("_", " "), x[finite], y[finite])


def says_something(values: Array) -> bool:
    """Whether there are two values that differ."""
    return len(values) > 1 and float(np.ptp(values)) > SAME * float(np.abs(values).max())


class Seen:
    """Which metrics have said something so far, line by line."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._first: dict[str, float] = {}
        self.telling: set[str] = set()
        for row in rows:
            self.add(row)

    @property
    def known(self) -> set[str]:
        """The metrics that have had a value."""
        return set(self._first)

    def add(self, values: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        """(metrics met for the first time, metrics that say something from now on) of one more line."""
        numbers = {k: v for k, v in values.items() if k != "step" and isinstance(v, int | float) and np.isfinite(v)}
        new = numbers.keys() - self._first.keys()
        self._first |= {name: numbers[name] for name in new}
        waiting = numbers.keys() - self.telling
        telling = {name for name in waiting if says_something(np.array([self._first[name], numbers[name]]))}
        telling = {name for name in telling if not _repeats(name, numbers)}
        self.telling |= telling
        return new, telling


# A metric that is by construction equal to another under some settings: without random blocks (game.share=1) the loss
# under an ECG's own mask is the loss.
_TWINS = {"heldout/masked_loss": "heldout/loss"}


def _repeats(name: str, values: Mapping[str, float]) -> bool:
    twin = _TWINS.get(name, "")
    return twin in values and not says_something(np.array([values[twin], values[name]]))


def _names(rows: Rows, key: str) -> list[str]:
    if not key.endswith("/"):
        return [key]
    return sorted({name for row in rows for name in row if name.startswith(key)})


def _different(found: Sequence[Series]) -> list[Series]:
    """Without the series that are equal to an earlier one."""
    out: list[Series] = []
    for s in found:
        if not any(
            np.array_equal(s.steps, o.steps) and np.allclose(s.values, o.values, rtol=SAME, atol=0.0) for o in out
        ):
            out.append(s)
    return out
