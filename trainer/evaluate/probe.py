"""Linear probe: logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.config import ProbeConfig
from trainer.evaluate.embed import embed
from trainer.evaluate.scores import macro_auroc
from trainer.evaluate.task import Task
from umbra.encoders.encoder import Encoder


@dataclass(frozen=True)
class Fitted:
    """Settings selected on val, their macro AUROC there, and class probabilities of the test records `[n, K]`."""

    chosen: dict[str, float]
    val_auroc: float
    probability: np.ndarray


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
    """Logistic regression on the `chosen` train records; selects C on val (the smaller one if two are equal)."""
    best: Fitted | None = None
    for c in sorted(config.C):
        model = LogisticRegression(C=c, max_iter=2000).fit(given.train[chosen], task.train.label[chosen])
        value = macro_auroc(task.val.label, model.predict_proba(given.val))
        if best is None or value > best.val_auroc:
            best = Fitted({"C": c}, value, model.predict_proba(given.test))
    assert best is not None
    return best
