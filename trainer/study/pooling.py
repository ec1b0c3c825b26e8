"""Pools the predictions of all rotations: a method, seed, task, fraction and draw -> its score, and of resamples."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from trainer.evaluate.config import TransferConfig
from trainer.evaluate.metrics import MAIN, Predicted, ranked
from trainer.evaluate.result import PREDICTIONS
from trainer.evaluate.scores import bootstrap_auroc, macro_auroc, one_hot, over_columns, r2
from trainer.study.cells import Cell
from trainer.study.config import StudyConfig, config_path
from umbra.config import load
from umbra.errors import UserError
from umbra.parquet import Table

FIX = "delete its folder and run the same study again"


@dataclass(frozen=True)
class Pooled:
    """The test records of all rotations: targets and predictions `[n, K]` of `classes`, patient and rotation `[n]`.

    A record of a class that is not scored in all rotations has a row of False.
    """

    kind: str
    classes: list[str]
    target: np.ndarray
    patient: np.ndarray
    rotation: np.ndarray
    prediction: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """Test records of each class; numbers: those that have one."""
        known = np.isfinite(self.target) if self.kind == "number" else self.target > 0
        return dict(zip(self.classes, known.sum(0).tolist()))

    def scores(self) -> np.ndarray:
        """What is scored, `[n, K]`: numbers as they are, of probabilities a record's mid-rank among the test records of
        its rotation, in (0, 1).

        Each rotation has its own probe, whose probabilities are on a scale of its own; ranks share one scale (Forman
        and Scholz, Apples-to-apples in cross-validation studies, 2010).
        """
        if self.kind == "number":
            return self.prediction
        out = np.empty_like(self.prediction)
        for r in np.unique(self.rotation):
            here = self.rotation == r
            out[here] = rankdata(self.prediction[here], axis=0) / (here.sum() + 1)
        return out

    def value(self, scores: np.ndarray, part: np.ndarray | slice = slice(None)) -> float:
        """Macro AUROC, or the mean R2 of numbers, of the records in `part`."""
        if self.kind == "number":
            return float(r2(self.target[part], scores[part]).mean())
        return macro_auroc(self.target[part], scores[part])

    def resampled(self, count: int) -> np.ndarray:
        """The value of each of `count` patient resamples, the same for all that were tested on these records."""
        if self.kind == "number":
            data = Predicted(self.target, self.scores(), self.patient)
            return over_columns(ranked(self.kind, data, count, 0)[0]["r2"][1])
        return over_columns(bootstrap_auroc(self.target, self.scores(), self.patient, count))

    def mean_over_rotations(self) -> float:
        parts = (self.rotation == r for r in np.unique(self.rotation))
        return float(np.mean([self.value(self.prediction, p) for p in parts]))


def task_kind(config: StudyConfig, task: str) -> str:
    """The kind of a task of the study."""
    return _kind(config_path("transfer", task), tuple(config.transfer))


@functools.cache
def _kind(path: Path, words: tuple[str, ...]) -> str:
    return load(TransferConfig, path, words, "of transfer").kind


def metric_of(config: StudyConfig, task: str) -> str:
    return MAIN[task_kind(config, task)]


def pool(config: StudyConfig, method: str, seed: int, task: str, fraction: float, draw: int = 0) -> Pooled:
    """Reads the predictions of one method, seed, task, fraction and draw over all rotations."""
    kind = task_kind(config, task)
    cells = [Cell(r, method, seed, task, fraction, draw).directory(Path(config.output)) for r in config.rotations]
    tables = [Table(cell / PREDICTIONS, FIX).read() for cell in cells]
    common = [c for c in tables[0].column_names if c.startswith("p_") and all(c in t.column_names for t in tables)]
    classes = [c.removeprefix("p_") for c in common]
    return Pooled(
        kind,
        classes,
        np.concatenate([_target(t, cell, kind, classes) for t, cell in zip(tables, cells)]),
        np.concatenate([t.column("patient").to_numpy() for t in tables]),
        np.concatenate([np.full(len(t), r) for r, t in zip(config.rotations, tables)]),
        np.concatenate([_columns(t, common) for t in tables]),
    )


def _target(table: pa.Table, cell: Path, kind: str, classes: list[str]) -> np.ndarray:
    wanted = ["label"] if kind == "classes" else [f"y_{name}" for name in classes]
    if lacking := [name for name in wanted if name not in table.column_names]:
        raise UserError(f"{cell / PREDICTIONS} lacks '{lacking[0]}': the kind of the task was changed; {FIX}")
    if kind != "classes":
        return _columns(table, wanted)
    number = {name: k for k, name in enumerate(classes)}
    label = [number.get(name, -1) for name in table.column("label").to_pylist()]
    return one_hot(np.array(label, dtype=np.int64), len(classes))


def _columns(table: pa.Table, names: list[str]) -> np.ndarray:
    """Columns of numbers, float64 `[n, K]`."""
    columns = [table.column(name).to_numpy().astype(np.float64) for name in names]
    return np.column_stack(columns) if names else np.empty((table.num_rows, 0))
