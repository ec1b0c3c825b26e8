"""Scores of predictions (AUROC, AUPRC, errors, calibration), and their intervals by a bootstrap over patients."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

BINS = 10
BLOCK = 1 << 14  # weights at a time, so that they stay in the cache
KEPT = 1 << 20  # weights of the resamples that are kept


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
    """AUROC of `score` `[n]` for each row of record weights `[B, n]` (see `weighted_areas`), `[B]`."""
    return np.concatenate([_auroc(*part) for part in _in_order(positive, score, weight)])


def _auroc(positive: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The first of `_areas`."""
    above = weight * positive
    below = weight - above
    if len(starts) < weight.shape[1]:
        above, below = (np.add.reduceat(x, starts, axis=1) for x in (above, below))
    lower = np.cumsum(below, axis=1)
    pairs = above.sum(1) * lower[:, -1]
    lower -= below / 2
    return np.divide(np.einsum("bg,bg->b", above, lower), pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def weighted_areas(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """AUROC and AUPRC of `score` `[n]` for each row of record weights `[B, n]`, `[2, B]`.

    AUROC is P(s+ > s-) + P(s+ = s-) / 2 (Mann-Whitney U). AUPRC is the average precision: the sum over thresholds of
    precision x the recall gained there. With integer weights these are the areas of the sample in which each record
    occurs that many times; NaN where the weights leave no positive or no negative record.
    """
    return np.concatenate([_areas(*part) for part in _in_order(positive, score, weight)], axis=1)


def _in_order(
    positive: np.ndarray, score: np.ndarray, weight: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Records in ascending order of their scores, and where equal scores begin, for some rows of weights at a time."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    step = max(1, BLOCK // len(score))
    for at in range(0, len(weight), step):
        yield positive[order], starts, weight[at : at + step].astype(np.float64)[:, order]


def _areas(positive: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`weighted_areas` of records in ascending order of their scores; equal scores begin at `starts`."""
    above, whole = weight * positive, weight
    if len(starts) < weight.shape[1]:
        above, whole = (np.add.reduceat(x, starts, axis=1) for x in (above, whole))
    rising, told = np.cumsum(above, axis=1), np.cumsum(whole, axis=1)
    positives = rising[:, -1:].copy()
    pairs = (positives * (told[:, -1:] - positives))[:, 0]
    hits = positives - rising + above
    lower = told - rising - (whole - above) / 2
    wins = np.einsum("bg,bg->b", above, lower)
    told = told[:, -1:] - told + whole
    told[told == 0] = 1
    gained = np.einsum("bg,bg->b", above, hits / told)
    nothing = np.full((2, len(weight)), np.nan)
    return np.divide(np.stack([wins, gained]), np.stack([pairs, positives[:, 0]]), out=nothing, where=pairs > 0)


def weighted_errors(target: np.ndarray, prediction: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """R2, mean absolute error and root of the mean squared error for each row of record weights `[B, n]`, `[3, B]`.

    R2 is 1 - squared error / squared deviation from the weighted mean of the targets; NaN where these do not vary.
    """
    of, error = target.astype(np.float64), prediction - target.astype(np.float64)
    of = of - of.mean()
    w = weight.astype(np.float64)
    total, squares = w.sum(1), w @ error**2
    spread = w @ of**2 - (w @ of) ** 2 / total
    r2 = 1 - np.divide(squares, spread, out=np.full(len(w), np.nan), where=spread > 1e-12 * (w @ of**2))
    return np.stack([r2, w @ np.abs(error) / total, np.sqrt(squares / total)])


def best_threshold(positive: np.ndarray, probability: np.ndarray) -> float:
    """The threshold with the largest F1, midway between two probabilities `[n]`; 0.5 if no record is positive."""
    if not positive.any():
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    hits, told = np.cumsum(positive[order]), np.arange(1, len(ranked) + 1)
    f1 = 2 * hits / (told + positive.sum())
    f1[:-1][ranked[1:] == ranked[:-1]] = -1  # a threshold cannot part equal probabilities
    at = int(f1.argmax())
    return float((ranked[at] + (ranked[at + 1] if at + 1 < len(ranked) else 0.0)) / 2)


def reliability(positive: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(records, mean probability, share of positives) of the `BINS` bins of equal width that hold a record."""
    at = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(at, minlength=BINS)
    used = count > 0
    mean = np.bincount(at, probability, BINS)[used] / count[used]
    return count[used], mean, np.bincount(at, positive, BINS)[used] / count[used]


def calibration_error(positive: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error: mean over records of |mean probability - share of positives| in the record's bin.

    Of one class against the rest, as the classwise error of Kull et al., Beyond temperature scaling (2019).
    """
    count, mean, share = reliability(positive, probability)
    return float((count * np.abs(mean - share)).sum() / count.sum())


def patient_resamples(patient: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Patient bootstrap: blocks `[b, n]` of record weights (how often its patient was drawn), `count` rows in all.

    Small ones are kept for the next task or figure of the same patients.
    """
    if count * len(patient) > KEPT:
        yield from _resamples(patient, count, seed)
    else:
        number = np.unique(patient, return_inverse=True)[1].astype(np.int64)
        yield from _kept_resamples(number.tobytes(), count, seed)


@functools.lru_cache(maxsize=16)
def _kept_resamples(patient: bytes, count: int, seed: int) -> list[np.ndarray]:
    return list(_resamples(np.frombuffer(patient, np.int64), count, seed))


def _resamples(patient: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
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


def over_columns(resampled: np.ndarray) -> np.ndarray:
    """Mean of the columns of `[count, S]` that are known in each resample, `[count]`.

    Resamples without a record of a rare class are means of the others: to leave them out would keep those alone in
    which the rare records were drawn, the more so the more rare classes there are.
    """
    known = np.isfinite(resampled)
    total, count = np.where(known, resampled, 0.0).sum(1), known.sum(1)
    return np.divide(total, count, out=np.full(len(resampled), np.nan), where=count > 0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % interval of bootstrap values, ignoring NaN; (nan, nan) if none are finite."""
    finite = values[np.isfinite(values)]
    return (float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))) if len(finite) else (math.nan,) * 2
