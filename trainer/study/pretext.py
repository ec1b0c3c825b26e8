"""How hard the pairs of each method were: what its runs logged last, to be read beside the scores of transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.observe.metrics import METRICS, read_metrics
from trainer.study.cells import runs_of
from trainer.study.config import UNTRAINED, StudyConfig

FIGURES = {
    "heldout/loss": "held-out loss",
    "heldout/accuracy": "pairs found",
    "heldout/effective_rank": "effective rank",
    "mask_sameness": "sameness of masks",
}


def pretext(config: StudyConfig) -> list[dict[str, Any]]:
    """A row a method: the last value of each of `FIGURES` and `probe/TASK` that its runs have logged, the mean over
    rotations and seeds. Methods whose runs are not there any more have none."""
    rows = []
    for method in (m for m in config.compared if m not in UNTRAINED):
        last = [_last(place / METRICS) for place in runs_of(config, method) if (place / METRICS).is_file()]
        names = sorted({name for run in last for name in run})
        means = {name: float(np.mean([run[name] for run in last if name in run])) for name in names}
        if means:
            rows.append({"method": method, "runs": len(last)} | means)
    return rows


def _last(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in read_metrics(path):
        known = {name: value for name, value in row.items() if name in FIGURES or name.startswith("probe/")}
        found |= {name: float(value) for name, value in known.items() if value is not None}
    return found
