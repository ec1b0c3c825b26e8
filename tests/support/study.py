"""A study of two rotations, as most tests want it, and predictions by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.study.cells import Cell
from trainer.study.config import StudyConfig


def study_of(output: str | Path, methods: Sequence[str] = ("adversarial", "none"), **keys: Any) -> StudyConfig:
    keys = {"rotations": [0, 1], "tasks": ["rhythm"], "fractions": [1.0], "bootstrap": 300} | keys
    return StudyConfig(name="s", data="d", output=str(output), methods=list(methods), **keys)


def predict(
    config, method, rotation, score, label, patient, names=("A", "B"), seed=0, task="rhythm", fraction=1.0, draw=0
):
    """Writes the predictions of one cell by hand."""
    place = Cell(rotation, method, seed, task, fraction, draw).directory(Path(config.output))
    place.mkdir(parents=True)
    columns = {"row": np.arange(len(label)), "patient": patient, "label": [names[k] for k in label]}
    columns |= {f"p_{name}": score[:, k] for k, name in enumerate(names)}
    pq.write_table(pa.table(columns), place / "predictions.parquet")


def scores(rng, label, strength):
    logit = rng.normal(size=len(label)) + strength * (2 * label - 1)
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], 1)
