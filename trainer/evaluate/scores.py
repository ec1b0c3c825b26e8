"""AUROC, and its interval by a bootstrap over patients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def scorable(label: np.ndarray, classes: int) -> list[int]:
    """The classes with both positive and negative records in `label`, for which the AUROC is defined."""
    return [k for k in range(classes) if 0 < (label == k).sum() < len(label)]


def macro_auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Mean one-vs-rest AUROC of scores `[n, K]` over the `scorable` classes of `label` `[n]`."""
    return float(np.mean([auroc(label == k, score[:, k]) for k in scorable(label, score.shape[1])]))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of `score` `[n]`; NaN without a positive or a negative record."""
    return float(weighted_auroc(positive, score, np.ones((1, len(score))))[0])


def weighted_auroc(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """AUROC of `score` `[n]` for each row of record weights `[B, n]`: P(s+ > s-) + P(s+ = s-) / 2, returns `[B]`.

    NaN where the weights leave no positive or no negative record. With integer weights this is the AUROC of the sample
    in which each record occurs that many times (Mann-Whitney U).
    """
    order = np.argsort(score, kind="stable")
    ranked, sign = score[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    ordered = weight[:, order].astype(np.float64)
    above = np.add.reduceat(ordered * sign, starts, axis=1)
    below = np.add.reduceat(ordered * ~sign, starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(1)
    pairs = above.sum(1) * below.sum(1)
    return np.divide(wins, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def patient_resamples(patient: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Patient bootstrap: blocks `[b, n]` of record weights (how often its patient was drawn), `count` rows in all."""
    unique, inverse = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng([seed, 0xB0])
    share = np.full(len(unique), 1 / len(unique))
    block = max(1, 2**22 // len(patient))
    for start in range(0, count, block):
        draws = rng.multinomial(len(unique), share, size=min(block, count - start))
        yield draws[:, inverse]


def bootstrap_auroc(label: np.ndarray, score: np.ndarray, patient: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Macro AUROC of `count` patient resamples, `[count, scorable classes]`; NaN where a resample lacks a class."""
    scored = scorable(label, score.shape[1])
    blocks = [
        np.stack([weighted_auroc(label == k, score[:, k], weight) for k in scored], axis=1)
        for weight in patient_resamples(patient, count, seed)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, len(scored)))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % interval of bootstrap values, ignoring NaN; (nan, nan) if none are finite."""
    finite = values[np.isfinite(values)]
    return (float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))) if len(finite) else (math.nan,) * 2
