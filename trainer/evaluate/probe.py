"""Linear probe: a linear head on frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, softmax

from trainer.evaluate.config import ProbeConfig
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.kinds import Kind, Numbers, kind_of
from trainer.evaluate.logistic import logistic
from trainer.evaluate.ridge import Decomposed, decompose, probabilities, ridge, scale_of
from trainer.evaluate.store import Store
from trainer.evaluate.task import Task


@dataclass(frozen=True)
class Features:
    """Frozen features of the three splits, standardised by the mean and standard deviation of the whole train split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    _decomposed: dict[bytes, Decomposed] = field(default_factory=dict, repr=False)

    def decomposed(self, chosen: np.ndarray) -> Decomposed:
        """The decomposition of these train records, kept until others are asked for."""
        key = chosen.tobytes()
        if key not in self._decomposed:
            self._decomposed.clear()
            self._decomposed[key] = decompose(self.train[chosen])
        return self._decomposed[key]


def features(task: Task, store: Store) -> Features:
    raw = store.of(task.train, task.val, task.test)
    mean, std = scale_of(raw[0])
    return Features(*((x - mean) / std for x in raw))


def probe(task: Task, given: Features, chosen: np.ndarray, config: ProbeConfig) -> Fitted:
    """A linear head on the `chosen` train records; selects its strength on val (the first if two are equal).

    Logistic regression (multinomial for classes, one a label), with C from the smallest, or ridge regression, with
    penalties from the largest; numbers always take ridge regression.
    """
    target = task.train.target[chosen]
    kind = kind_of(task.kind, target)
    if task.kind == "number" or config.head == "ridge":
        return _ridge(task, kind, given, chosen, sorted(config.penalty, reverse=True))
    return _logistic(task, kind, given, chosen, sorted(config.C))


def _logistic(task: Task, kind: Kind, given: Features, chosen: np.ndarray, strengths: list[float]) -> Fitted:
    """Selects C by the probabilities of val; a label that is the same in all chosen records is told as that."""
    target = task.train.target[chosen].astype(np.float64)
    one = task.kind == "classes" and target.shape[1] > 2
    fitted = target[:, 1:] if task.kind == "classes" and not one else target
    heads = logistic(given.decomposed(chosen), fitted, strengths, one)

    def told(x: np.ndarray, head: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        output = x @ head[0] + head[1]
        if one:
            return np.asarray(softmax(output, axis=1))
        p = expit(output)
        if task.kind == "classes":
            return np.column_stack([1 - p, p])
        same = (target == target[0]).all(0)
        return np.where(same, target[0], p)

    vals = [told(given.val, head) for head in heads]
    values = [kind.value(task.val.target, val) for val in vals]
    best = int(np.argmax(values))
    return Fitted({"C": strengths[best]}, values[best], vals[best], told(given.test, heads[best]))


def _ridge(task: Task, kind: Kind, given: Features, chosen: np.ndarray, penalties: list[float]) -> Fitted:
    """Selects the penalty by its scores of val; these become numbers, or probabilities by a sigmoid fitted on val (on
    the train records for a label that val has not)."""
    target, numbers = task.train.target[chosen], isinstance(kind, Numbers)
    wanted = (target - kind.mean) / kind.std if isinstance(kind, Numbers) else target
    heads = ridge(given.decomposed(chosen), wanted, penalties)
    scores = [given.val @ weights + intercept for weights, intercept in heads]
    values = [kind.value(task.val.target, kind.predict(val) if numbers else val) for val in scores]
    best = int(np.argmax(values))
    weights, intercept = heads[best]
    val, test = scores[best], given.test @ weights + intercept
    if numbers:
        val, test = kind.predict(val), kind.predict(test)
    else:
        fit_on = [(val, task.val.target), (given.train[chosen] @ weights + intercept, target)]
        val, test = probabilities([val, test], fit_on, task.kind == "classes")
    return Fitted({"penalty": penalties[best]}, kind.value(task.val.target, val), val, test)
