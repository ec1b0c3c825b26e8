"""AUROC, and its interval by a bootstrap over patients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    """Class numbers `[n]` as bool `[n, classes]`; a row of False for a number that is no class."""
    return np.asarray(label[:, None] == np.arange(classes))


def scorable(target: np.ndarray) -> list[int]:
    """The columns of `target` `[n, K]` with both positive and negative records, for which the AUROC is defined."""
    return [k for k, count in enumerate((target > 0).sum(0)) if 0 < count < len(target)]


def macro_auroc(target: np.ndarray, score: np.ndarray) -> float:
    """Mean AUROC of scores `[n, K]` over the `scorable` columns of `target` `[n, K]`; NaN if there is none."""
    values = [auroc(target[:, k] > 0, score[:, k]) for k in scorable(target)]
    return float(np.mean(values)) if values else math.nan


def r2(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """R2 of each column of numbers `[n, K]`, `[K]`: 1 - squared error / squared deviation from the mean of `target`;
    NaN where `target` does not vary."""
    of, to = target.astype(np.float64), prediction.astype(np.float64)
    spread = ((of - of.mean(0)) ** 2).sum(0)
    return 1 - np.divide(((of - to) ** 2).sum(0), spread, out=np.full(of.shape[1], np.nan), where=spread > 0)


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


def bootstrap_auroc(
    target: np.ndarray, score: np.ndarray, patient: np.ndarray, count: int, seed: int = 0
) -> np.ndarray:
    """AUROC of `count` patient resamples, `[count, scorable columns of target]`; NaN where a resample lacks a class."""
    scored = scorable(target)
    blocks = [
        np.stack([weighted_auroc(target[:, k] > 0, score[:, k], weight) for k in scored], axis=1)
        for weight in patient_resamples(patient, count, seed)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, len(scored)))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % interval of bootstrap values, ignoring NaN; (nan, nan) if none are finite."""
    finite = values[np.isfinite(values)]
    return (float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))) if len(finite) else (math.nan,) * 2
