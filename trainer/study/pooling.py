"""Pools the predictions of all rotations into one score per method, with paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from trainer.evaluate.result import PREDICTIONS
from trainer.evaluate.scores import bootstrap_auroc, interval, macro_auroc, one_hot
from trainer.study.config import Cell, StudyConfig
from umbra.errors import UserError
from umbra.parquet import Table

RESOLVABLE = 2.8  # standard errors: 80 % power at a two-sided level of 5 %


@dataclass(frozen=True)
class Pooled:
    """The test records of all rotations: class number (-1: not scored in all rotations), patient, rotation,
    probabilities `[n, K]`."""

    classes: list[str]
    label: np.ndarray
    patient: np.ndarray
    rotation: np.ndarray
    probability: np.ndarray

    @property
    def target(self) -> np.ndarray:
        """Bool `[n, K]`."""
        return one_hot(self.label, len(self.classes))

    def ranks(self) -> np.ndarray:
        """Scores `[n, K]` that can be pooled: a record's mid-rank among the test records of its rotation, in (0, 1).

        Each rotation has its own probe, whose probabilities are on a scale of its own; ranks share one scale (Forman
        and Scholz, Apples-to-apples in cross-validation studies, 2010).
        """
        out = np.empty_like(self.probability)
        for r in np.unique(self.rotation):
            here = self.rotation == r
            out[here] = rankdata(self.probability[here], axis=0) / (here.sum() + 1)
        return out

    def mean_over_rotations(self) -> float:
        parts = (self.rotation == r for r in np.unique(self.rotation))
        return float(np.mean([macro_auroc(self.target[p], self.probability[p]) for p in parts]))


def pool(config: StudyConfig, method: str, seed: int, task: str, fraction: float) -> Pooled:
    """Reads the predictions of one method, seed, task and fraction over all rotations."""
    output = Path(config.output)
    files = [Cell(r, method, seed, task, fraction).directory(output) / PREDICTIONS for r in config.rotations]
    fix = "delete its folder and run the same study again"
    tables = [Table(file, fix).read().to_pandas() for file in files]
    common = [c for c in tables[0].columns if c.startswith("p_") and all(c in t.columns for t in tables)]
    classes = [c.removeprefix("p_") for c in common]
    number = {name: k for k, name in enumerate(classes)}
    return Pooled(
        classes,
        np.concatenate([[number.get(name, -1) for name in t["label"]] for t in tables]).astype(np.int64),
        np.concatenate([t["patient"].to_numpy() for t in tables]),
        np.concatenate([np.full(len(t), r) for r, t in zip(config.rotations, tables)]),
        np.concatenate([t[common].to_numpy(dtype=np.float64) for t in tables]),
    )


def score(config: StudyConfig, method: str, task: str, fraction: float) -> tuple[dict[str, Any], np.ndarray]:
    """The row of one method in the table, and its macro AUROC per patient resample `[bootstrap]` (mean over seeds)."""
    pooled = [pool(config, method, seed, task, fraction) for seed in config.seeds]
    by_seed = [macro_auroc(p.target, p.ranks()) for p in pooled]
    resampled = np.mean(
        [bootstrap_auroc(p.target, p.ranks(), p.patient, config.bootstrap).mean(1) for p in pooled], axis=0
    )
    low, high = interval(resampled)
    row = {
        "method": method,
        "task": task,
        "fraction": fraction,
        "auroc": float(np.mean(by_seed)),
        "low": low,
        "high": high,
        "by_seed": by_seed,
        "pooled_probabilities": float(np.mean([macro_auroc(p.target, p.probability) for p in pooled])),
        "mean_over_rotations": float(np.mean([p.mean_over_rotations() for p in pooled])),
        "records": len(pooled[0].label),
        "patients": len(np.unique(pooled[0].patient)),
        "test_counts": {c: int((pooled[0].label == k).sum()) for k, c in enumerate(pooled[0].classes)},
    }
    return row, resampled


def difference(reference: dict[str, Any], other: dict[str, Any], paired: np.ndarray) -> dict[str, Any]:
    """Reference minus other; `paired`: the same difference in each patient resample `[bootstrap]`.

    `resolvable`: the smallest true difference that a two-sided test at 5 % detects with 80 % power,
    (1.96 + 0.84) x the standard error of the paired difference.
    """
    low, high = interval(paired)
    error = float(np.nanstd(paired, ddof=1))
    return {
        "task": reference["task"],
        "fraction": reference["fraction"],
        "reference": reference["method"],
        "other": other["method"],
        "difference": reference["auroc"] - other["auroc"],
        "low": low,
        "high": high,
        "standard_error": error,
        "resolvable": RESOLVABLE * error,
    }


def compare(config: StudyConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all methods, and the paired differences between the reference and each other method."""
    rows, differences = [], []
    for task in config.tasks:
        for fraction in config.fractions:
            scored = {m: score(config, m, task, fraction) for m in config.methods}
            rows += [row for row, _ in scored.values()]
            first, first_resampled = scored[config.reference]
            for method in (m for m in config.methods if m != config.reference):
                row, resampled = scored[method]
                if row["test_counts"] != first["test_counts"]:
                    raise UserError(
                        f"{method} and {config.reference} were tested on different records: use a new output"
                    )
                differences.append(difference(first, row, first_resampled - resampled))
    return rows, differences
