"""Linear probe: logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from trainer.evaluate.config import ProbeConfig
from trainer.evaluate.embed import embed
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.kinds import kind_of
from trainer.evaluate.task import Task
from umbra.encoders.encoder import Encoder


@dataclass(frozen=True)
class Features:
    """Frozen features of the three splits, standardised by the mean and standard deviation of the whole train split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def features(encoder: Encoder, task: Task, batch: int) -> Features:
    raw = [embed(encoder, part, batch) for part in (task.train, task.val, task.test)]
    mean, std = raw[0].mean(0), raw[0].std(0)
    std[std < 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    return Features(*((x - mean) / std for x in raw))


def probe(task: Task, given: Features, chosen: np.ndarray, config: ProbeConfig) -> Fitted:
    """A linear head on the `chosen` train records; selects C on val (the smaller one if two are equal).

    Multinomial logistic regression for classes, one logistic regression a label, ridge regression for numbers.
    """
    target = task.train.target[chosen]
    kind = kind_of(task.kind, target)
    fit = {"classes": _classes, "labels": _labels, "number": _numbers}[task.kind]
    best: Fitted | None = None
    for c in sorted(config.C):
        val, test = fit(given.train[chosen], target, c, [given.val, given.test])
        value = kind.value(task.val.target, val)
        if best is None or value > best.val_value:
            best = Fitted({"C": c}, value, val, test)
    assert best is not None
    return best


def _classes(x: np.ndarray, target: np.ndarray, c: float, others: list[np.ndarray]) -> list[np.ndarray]:
    model = LogisticRegression(C=c, max_iter=2000).fit(x, target.argmax(1))
    return [model.predict_proba(other) for other in others]


def _labels(x: np.ndarray, target: np.ndarray, c: float, others: list[np.ndarray]) -> list[np.ndarray]:
    parts = []
    for column in target.T:
        if (column == column[0]).all():
            parts.append([np.full(len(other), float(column[0])) for other in others])
            continue
        model = LogisticRegression(C=c, max_iter=2000).fit(x, column > 0)
        parts.append([model.predict_proba(other)[:, 1] for other in others])
    return [np.column_stack(of) for of in zip(*parts)]


def _numbers(x: np.ndarray, target: np.ndarray, c: float, others: list[np.ndarray]) -> list[np.ndarray]:
    model = Ridge(alpha=1 / c).fit(x, target.astype(np.float64))
    return [model.predict(other).reshape(len(other), -1) for other in others]
