"""Ridge regression in closed form: one decomposition serves all targets and all penalties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression


def ridge(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights `[D, K]`, intercept `[K]`) for each penalty: minimises mean |y - xw - b|^2 + penalty |w|^2.

    `x` `[n, D]`, `y` `[n, K]`; the intercept is not penalised. With S L S' the smaller of x'x and xx' (centred),
    w = S (L + n penalty)^-1 S' x'y, or x' S (L + n penalty)^-1 S' y.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean, middle = x.mean(0), y.mean(0)
    x, y = x - mean, y - middle
    tall = len(x) >= x.shape[1]
    values, vectors = eigh(x.T @ x if tall else x @ x.T)
    values = np.maximum(values, 0.0)
    turned = vectors.T @ (x.T @ y if tall else y)
    out = []
    for penalty in penalties:
        solved = vectors @ (turned / (values + len(x) * penalty)[:, None])
        weights = solved if tall else x.T @ solved
        out.append((weights, middle - mean @ weights))
    return out


def probabilities(
    score: Sequence[np.ndarray], fit_on: Sequence[tuple[np.ndarray, np.ndarray]], one: bool
) -> list[np.ndarray]:
    """Scores `[n, K]` as probabilities by a sigmoid for each column (Platt, 1999).

    The sigmoid is fitted on the first (scores, target) of `fit_on` that has positive and negative records. `one`: the
    rows are scaled to the sum 1.
    """
    slopes = [_sigmoid([(s[:, k], t[:, k] > 0) for s, t in fit_on]) for k in range(score[0].shape[1])]
    a, b = np.array(slopes).T
    found = [1 / (1 + np.exp(-np.clip(a * s + b, -500, 500))) for s in score]
    return [p / p.sum(1, keepdims=True) for p in found] if one else found


def _sigmoid(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Slope (never falling) and intercept; those of the score itself if no pair has both kinds of records."""
    for score, positive in pairs:
        if 0 < positive.sum() < len(positive):
            scale = float(score.std()) or 1.0
            model = LogisticRegression(C=1.0).fit(score[:, None] / scale, positive)
            slope = float(model.coef_[0, 0])
            if slope > 0:
                return slope / scale, float(model.intercept_[0])
    return 4.0, -2.0
