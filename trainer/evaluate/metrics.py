"""The figures of a result: per class and macro, with thresholds from val and intervals by a bootstrap over patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluate.scores import (
    best_threshold,
    bootstrap_auroc,
    calibration_error,
    interval,
    macro_auroc,
    over_columns,
    patient_resamples,
    scorable,
    weighted_areas,
    weighted_errors,
)

MAIN = {"classes": "auroc", "labels": "auroc", "number": "r2"}
SHOWN = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Predicted:
    """Records that were predicted: `target` and `prediction` `[n, K]`, patient codes `[n]`."""

    target: np.ndarray
    prediction: np.ndarray
    patient: np.ndarray

    def take(self, chosen: np.ndarray) -> Predicted:
        return Predicted(self.target[chosen], self.prediction[chosen], self.patient[chosen])


def thresholds_of(kind: str, val: np.ndarray, prediction: np.ndarray) -> np.ndarray | None:
    """The probability `[K]` from which a label is told, chosen on val; None for the other kinds."""
    if kind != "labels":
        return None
    return np.array([best_threshold(val[:, k] > 0, prediction[:, k]) for k in range(val.shape[1])])


def figures(
    kind: str, names: list[str], data: Predicted, thresholds: np.ndarray | None, count: int, seed: int
) -> tuple[dict[str, Row], dict[str, Row]]:
    """`{figure: {value, low, high}}` over all classes, and `{class: {figure: value, low, high, ...}}`.

    `low` and `high` of a class belong to its main figure (AUROC or R2); a class that cannot be scored is left out.
    `count` patient resamples with `seed`.
    """
    main, scored = ranked(kind, data, count, seed)
    per_class: dict[str, Row] = {}
    first = MAIN[kind]
    for k in scored:
        row: Row = {}
        for name, (value, resampled) in main.items():
            low, high = interval(resampled[:, scored.index(k)])
            ends = {"low": low, "high": high} if name == first else {f"{name}_low": low, f"{name}_high": high}
            row |= {name: float(value[scored.index(k)]), **ends}
        per_class[names[k]] = row
    means = {}
    for name, (value, resampled) in main.items():
        macro = over_columns(resampled)
        low, high = interval(macro)
        known = int(np.isfinite(macro).sum())
        means[name] = {"value": float(value.mean()), "low": low, "high": high, "resamples": known}
    if kind == "number":
        return means, per_class
    for k, row in zip(scored, decisions(kind, data, thresholds, scored)):
        per_class[names[k]] |= row
    for name in ("accuracy", "balanced_accuracy", "f1", "brier", "ece"):
        means[name] = {"value": float(np.mean([per_class[names[k]][name] for k in scored]))}
    if kind == "classes":
        right = data.target.argmax(1) == data.prediction.argmax(1)
        recall = [right[data.target[:, k] > 0].mean() for k in scored]
        means["accuracy"]["value"], means["balanced_accuracy"]["value"] = float(right.mean()), float(np.mean(recall))
    return means, per_class


def ranked(
    kind: str, data: Predicted, count: int, seed: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[int]]:
    """The figures with intervals, `{figure: (values [S], resampled [count, S])}`, and the S columns that are scored."""
    target, prediction = data.target, data.prediction
    if kind == "number":
        scored = list(range(target.shape[1]))
        names = ["r2", "mae", "rmse"]

        def measure(weight: np.ndarray) -> np.ndarray:
            return np.stack([weighted_errors(target[:, k], prediction[:, k], weight) for k in scored], axis=-1)
    else:
        scored = scorable(target)
        names = ["auroc", "auprc"]

        def measure(weight: np.ndarray) -> np.ndarray:
            return np.stack([weighted_areas(target[:, k] > 0, prediction[:, k], weight) for k in scored], axis=-1)

    whole = measure(np.ones((1, len(target))))[:, 0]
    blocks = [measure(weight) for weight in patient_resamples(data.patient, count, seed)]
    resampled = np.concatenate(blocks, axis=1) if blocks else np.empty((len(names), 0, len(scored)))
    return {name: (whole[i], resampled[i]) for i, name in enumerate(names)}, scored


def decisions(kind: str, data: Predicted, thresholds: np.ndarray | None, scored: list[int]) -> list[Row]:
    """Of each scored class: threshold (labels only), accuracy, balanced accuracy, F1, sensitivity, specificity, Brier
    score and calibration error."""
    rows = []
    for k in scored:
        true, p = data.target[:, k] > 0, data.prediction[:, k]
        told = data.prediction.argmax(1) == k if thresholds is None else p >= thresholds[k]
        hits = int((told & true).sum())
        sensitivity, specificity = hits / true.sum(), (~told & ~true).sum() / (~true).sum()
        row: Row = {} if thresholds is None else {"threshold": float(thresholds[k])}
        rows.append(
            row
            | {
                "accuracy": float((told == true).mean()),
                "balanced_accuracy": float((sensitivity + specificity) / 2),
                "f1": float(2 * hits / (true.sum() + told.sum())),
                "sensitivity": float(sensitivity),
                "specificity": float(specificity),
                "brier": float(((p - true) ** 2).mean()),
                "ece": calibration_error(true, p),
            }
        )
    return rows


def main_value(kind: str, data: Predicted, least: int, count: int, seed: int) -> Row | None:
    """AUROC, or R2 and MAE, of a subgroup `{figure: value, low, high, classes: [column, ...]}`, over classes with at
    least `least` positive and as many negative records (numbers: `least` records); None if there is none."""
    positive = (data.target > 0).sum(0)
    enough = (
        np.full(data.target.shape[1], len(data.target) >= max(least, 2) and np.ptp(data.target, axis=0).min() > 0)
        if kind == "number"
        else (positive >= max(least, 1)) & (len(data.target) - positive >= max(least, 1))
    )
    if not enough.any():
        return None
    columns = np.flatnonzero(enough)
    part = Predicted(data.target[:, columns], data.prediction[:, columns], data.patient)
    if kind != "number":  # AUROC alone: half of the work of `ranked`
        low, high = interval(over_columns(bootstrap_auroc(part.target, part.prediction, part.patient, count, seed)))
        return {
            "auroc": macro_auroc(part.target, part.prediction),
            "low": low,
            "high": high,
            "classes": columns.tolist(),
        }
    found, _ = ranked(kind, part, count, seed)
    value, resampled = found["r2"]
    low, high = interval(over_columns(resampled))
    row = {"r2": float(value.mean()), "low": low, "high": high, "classes": columns.tolist()}
    return row | {"mae": float(found["mae"][0].mean())}
