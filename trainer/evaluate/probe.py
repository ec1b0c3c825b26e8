"""Linear probe: a linear head on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.config import ProbeConfig
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.kinds import Kind, Numbers, kind_of
from trainer.evaluate.ridge import Decomposed, decompose, probabilities, ridge
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
    mean, std = raw[0].mean(0), raw[0].std(0)
    std[std < 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
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
    best: Fitted | None = None
    fit = _one_class if task.kind == "classes" else _each_label
    tried = fit(given.train[chosen], target, sorted(config.C), (given.val, given.test))
    for c, (val, test) in zip(sorted(config.C), tried):
        value = kind.value(task.val.target, val)
        if best is None or value > best.val_value:
            best = Fitted({"C": c}, value, val, test)
    assert best is not None
    return best


Parts = list[np.ndarray]


def _one_class(x: np.ndarray, target: np.ndarray, strengths: list[float], others: Sequence[np.ndarray]) -> list[Parts]:
    """Probabilities `[n, K]` of each of the `others` for each strength."""
    models = (LogisticRegression(C=c, max_iter=2000).fit(x, target.argmax(1)) for c in strengths)
    return [[model.predict_proba(other) for other in others] for model in models]


def _each_label(x: np.ndarray, target: np.ndarray, strengths: list[float], others: Sequence[np.ndarray]) -> list[Parts]:
    """As `_one_class`, label by label; a label that is the same in all records is told as that."""
    columns = [_label(x, column > 0, strengths, others) for column in target.T]
    return [[np.column_stack(of) for of in zip(*by_label)] for by_label in zip(*columns)]


def _label(x: np.ndarray, positive: np.ndarray, strengths: list[float], others: Sequence[np.ndarray]) -> list[Parts]:
    if positive.all() or not positive.any():
        return [[np.full(len(other), float(positive[0])) for other in others]] * len(strengths)
    model, found = LogisticRegression(max_iter=2000, warm_start=True), []
    for c in strengths:
        model.set_params(C=c).fit(x, positive)
        found.append([model.predict_proba(other)[:, 1] for other in others])
    return found


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
