"""What probe and fine-tuning return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Fitted:
    """Settings selected on val, their value there (`Kind.value`), and predictions (`Kind.predict`).

    `val` `[n_val, K]` is for thresholds, `prediction` `[n_test, K]` for the result.
    """

    chosen: dict[str, Any]
    val_value: float
    val: np.ndarray
    prediction: np.ndarray
