"""The three kinds of task: how a head's outputs are trained, become predictions, and are judged on val."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn import functional

from trainer.evaluate.scores import macro_auroc, r2


class Kind(Protocol):
    """`loss` of a batch of outputs, `predict` from outputs to predictions, `value` of predictions (larger is better).

    Outputs, targets and predictions are `[n, K]`.
    """

    def loss(self, output: Tensor, target: Tensor) -> Tensor: ...

    def predict(self, output: np.ndarray) -> np.ndarray: ...

    def value(self, target: np.ndarray, prediction: np.ndarray) -> float: ...


class Classes:
    """One class a record: cross-entropy, softmax, macro AUROC."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target.argmax(1))

    def predict(self, output: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(output.astype(np.float64), axis=1))

    def value(self, target: np.ndarray, prediction: np.ndarray) -> float:
        return macro_auroc(target, prediction)


class Labels:
    """Any number of labels a record: binary cross-entropy, sigmoid, macro AUROC."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output, target)

    def predict(self, output: np.ndarray) -> np.ndarray:
        return np.asarray(expit(output.astype(np.float64)))

    def value(self, target: np.ndarray, prediction: np.ndarray) -> float:
        return macro_auroc(target, prediction)


@dataclass(frozen=True)
class Numbers:
    """Numbers: outputs are standardised by `mean` and `std` `[K]` of the train targets; squared error, mean R2."""

    mean: np.ndarray
    std: np.ndarray

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        mean, std = (torch.as_tensor(v, dtype=output.dtype, device=output.device) for v in (self.mean, self.std))
        return functional.mse_loss(output, (target - mean) / std)

    def predict(self, output: np.ndarray) -> np.ndarray:
        return output.astype(np.float64) * self.std + self.mean

    def value(self, target: np.ndarray, prediction: np.ndarray) -> float:
        return float(r2(target, prediction).mean())


def kind_of(kind: str, train: np.ndarray) -> Kind:
    """The kind of a task; `train` are the targets `[n, K]` of the chosen train records."""
    if kind == "number":
        mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        return Numbers(mean, np.where(std > 0, std, 1.0))
    return Classes() if kind == "classes" else Labels()
