"""Logistic regression of many labels or of classes, for a path of strengths, by L-BFGS in the axes of the records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from trainer.evaluate.ridge import Decomposed

GRADIENT = 1e-3  # largest entry at the minimum, of the summed loss in axes in which its curvature is about 1
STEPS = 2000


def logistic(
    of: Decomposed, y: np.ndarray, strengths: Sequence[float], one: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights `[D, K]`, intercept `[K]`) for each C: minimises the summed log loss + |w|^2 / (2 C).

    `y` 0 or 1 `[n, K]`; `one`: softmax over the columns, else each column has a sigmoid of its own. The intercept is
    not penalised. In the eigenvectors of x'x, scaled by the curvature (share of positives x share of negatives x
    eigenvalue + 1/C), the problem is nearly round: few steps are needed. Each C starts from the solution before.
    """
    used = of.values > 1e-12 * max(of.values.max(), 1e-300)
    root = np.sqrt(of.values[used])
    back = of.vectors[:, used] if of.tall else of.x.T @ (of.vectors[:, used] / root)
    z = of.x @ back if of.tall else of.vectors[:, used] * root
    share = y.mean(0)
    curve = np.maximum(share * (1 - share), 1e-3)
    point = np.vstack([np.zeros((z.shape[1], y.shape[1])), np.log((share + 1e-6) / (1 - share + 1e-6))])
    out = []
    for c in strengths:
        scale = 1 / np.sqrt(np.vstack([np.outer(root**2, curve) + 1 / c, len(y) * curve]))

        def loss(flat: np.ndarray, scale: np.ndarray = scale, c: float = c) -> tuple[float, np.ndarray]:
            w = flat.reshape(scale.shape) * scale
            value, slope = _loss(z @ w[:-1] + w[-1], y, one)
            gradient = np.vstack([z.T @ slope + w[:-1] / c, slope.sum(0)]) * scale
            return value + float((w[:-1] ** 2).sum()) / (2 * c), gradient.ravel()

        options = {"gtol": GRADIENT, "ftol": 1e-14, "maxiter": STEPS, "maxcor": 10}
        found = minimize(loss, (point / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
        point = found.x.reshape(scale.shape) * scale
        weights = back @ point[:-1]
        out.append((weights, point[-1] - of.mean @ weights))
    return out


def _loss(output: np.ndarray, y: np.ndarray, one: bool) -> tuple[float, np.ndarray]:
    """The summed log loss of outputs `[n, K]`, and its gradient."""
    if one:
        log = output - logsumexp(output, axis=1, keepdims=True)
        return -float((y * log).sum()), np.exp(log) - y
    return float((np.logaddexp(0, output) - y * output).sum()), expit(output) - y
