"""Ridge regression in closed form: one decomposition serves all targets and all penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Decomposed:
    """Records `x` `[n, D]` less their `mean`, and eigenvalues and eigenvectors of the smaller of x'x and xx'."""

    x: np.ndarray
    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @property
    def tall(self) -> bool:
        """Whether x'x is the smaller one."""
        return self.x.shape[0] >= self.x.shape[1]


def scale_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[D]` of records `[n, D]`, by which features are standardised; the latter is 1 where
    they do not vary."""
    mean, std = x.mean(0), x.std(0)
    std[std < 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    return mean, std


def decompose(x: np.ndarray) -> Decomposed:
    """What all targets and penalties on the records `x` `[n, D]` have in common."""
    mean = x.mean(0, dtype=np.float64)
    x = x.astype(np.float64) - mean
    values, vectors = eigh(x.T @ x if len(x) >= x.shape[1] else x @ x.T)
    return Decomposed(x, mean, np.maximum(values, 0.0), vectors)


def ridge(of: Decomposed, y: np.ndarray, penalties: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights `[D, K]`, intercept `[K]`) for each penalty: minimises mean |y - xw - b|^2 + penalty |w|^2.

    `y` `[n, K]`; the intercept is not penalised. With S L S' the smaller of x'x and xx' (centred),
    w = S (L + n penalty)^-1 S' x'y, or x' S (L + n penalty)^-1 S' y.
    """
    y = y.astype(np.float64)
    middle = y.mean(0)
    y = y - middle
    turned = of.vectors.T @ (of.x.T @ y if of.tall else y)
    out = []
    for penalty in penalties:
        solved = of.vectors @ (turned / (of.values + len(of.x) * penalty)[:, None])
        weights = solved if of.tall else of.x.T @ solved
        out.append((weights, middle - of.mean @ weights))
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
