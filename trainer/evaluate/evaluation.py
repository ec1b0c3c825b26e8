"""What a model card says of a result."""

from __future__ import annotations

from pathlib import Path

from trainer.evaluate.compare import FIX, read_result
from trainer.evaluate.metrics import SHOWN
from trainer.evaluate.task import choice
from umbra.card import Evaluation
from umbra.errors import UserError
from umbra.files import damaged


def read_evaluation(path: Path) -> tuple[Evaluation, str]:
    """What a model card says of a result.json, and the encoder that it names.

    Raises `UserError` if it cannot be read, or is not of trained weights.
    """
    result = read_result(path)
    if result.mode == "scratch" or result.encoder == "random":
        raise UserError(f"{path} is of random weights (mode={result.mode}, encoder={result.encoder}): leave it out")
    data, per_class = result.content.get("data"), result.content.get("per_class")
    if not isinstance(data, dict) or "fingerprint" not in data or not isinstance(per_class, dict):
        raise damaged(path, "it names no data or has no figure of each class", FIX)
    scores = {name: one.get(result.metric) for name, one in per_class.items() if isinstance(one, dict)}
    evaluation = Evaluation(
        result.task,
        result.mode,
        result.fraction,
        f"seed {choice(result.seed, result.draw)}",
        str(data["fingerprint"]),
        SHOWN[result.metric],
        result.value,
        result.low,
        result.high,
        {name: float(score) for name, score in scores.items() if isinstance(score, int | float)},
    )
    return evaluation, result.encoder
