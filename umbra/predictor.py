"""A fitted model: an encoder directory with a head beside it, from millivolts to predictions.

As `umbra.hub`, it needs torch, numpy and safetensors alone, and runs no code from the directory.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from umbra.directory import mismatch, read_weights, save_weights
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError
from umbra.files import damaged, read_json, write_text
from umbra.hub import load_encoder
from umbra.typed import typed

HEAD, HEAD_WEIGHTS = "head.json", "head.safetensors"
HEAD_FORMAT = 1
KINDS = ("classes", "labels", "number")
FIX = "fine-tune again (`python -m trainer.transfer mode=finetune`)"


@dataclass(frozen=True)
class HeadConfig:
    """Contents of `head.json`: what the columns of a prediction mean.

    `kind`: `classes` (probabilities that add up to 1), `labels` (a probability each) or `number` (numbers in the unit
    of the labels: `mean` + `std` x output). `names` of the columns; `task`: the name of the task.
    """

    kind: str
    names: list[str]
    task: str = ""
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    format: int = HEAD_FORMAT

    def check(self) -> None:
        """Raises `ValueError` for what no fit writes."""
        if self.kind not in KINDS:
            raise ValueError(f"'kind' is {self.kind}, not {' or '.join(KINDS)}")
        if not self.names:
            raise ValueError("'names' is empty")
        wanted = len(self.names) if self.kind == "number" else 0
        if not len(self.mean) == len(self.std) == wanted:
            raise ValueError(f"kind {self.kind} has {wanted} values of 'mean' and 'std'")


class Predictor(nn.Module):
    """mV [B, leads, samples] -> predictions [B, K] of the columns `names`, by `encoder` and a linear `head`.

    `config` says what they are. The module takes what its encoder takes, and raises what that raises. As with the
    encoder, predictions carry gradients in training mode, after `requires_grad_()`, and where the input requires them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, head: nn.Linear, config: HeadConfig) -> None:
        super().__init__()
        self.encoder, self.head, self.config = encoder, head, config
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name), dtype=torch.float32), persistent=False)

    @property
    def names(self) -> list[str]:
        return self.config.names

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of torch; in addition, predictions carry gradients in eval mode too (False: only in training mode)."""
        self.encoder.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        wanted = self.training or self.encoder.gradients or x.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            return self._told(self.head(features))

    def _told(self, output: Tensor) -> Tensor:
        if self.config.kind == "classes":
            return output.softmax(-1)
        return output.sigmoid() if self.config.kind == "labels" else self.mean + self.std * output


def load_predictor(directory: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Loads a fitted model from the `model/` that fine-tuning leaves in its output folder; in eval mode.

    Raises `UserError` if a file is missing, damaged, or does not match the others.
    """
    encoder = load_encoder(directory, device)
    path = Path(directory) / HEAD
    content = read_json(path, FIX)
    if content.get("format") != HEAD_FORMAT:
        raise UserError(f"{path} has format {content.get('format')}, this version reads {HEAD_FORMAT}: {FIX}")
    try:
        config = typed(HeadConfig, content)
        config.check()
    except ValueError as error:
        raise damaged(path, error, FIX) from error
    head = nn.Linear(encoder.dim, len(config.names))
    weights = read_weights(path.with_name(HEAD_WEIGHTS), FIX)
    if problem := mismatch(head.state_dict(), weights):
        raise UserError(f"{path.with_name(HEAD_WEIGHTS)} does not match {HEAD} and the encoder beside it: {problem}")
    head.load_state_dict(weights)
    return Predictor(encoder, head, config).to(next(encoder.parameters()).device).eval()


def save_head(directory: Path, head: nn.Linear, config: HeadConfig) -> None:
    """Writes the head beside the encoder's files in `directory`."""
    save_weights(directory / HEAD_WEIGHTS, head.state_dict())
    write_text(directory / HEAD, json.dumps(dataclasses.asdict(config), indent=1) + "\n")
