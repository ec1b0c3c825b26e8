"""The exported encoder: scaling and backbone in one module, from millivolts to features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umbra.encoders.backbone import Backbone
from umbra.encoders.config import SCALINGS, EncoderConfig
from umbra.encoders.pretrained import Pretrained
from umbra.errors import UserError


class Scaling(nn.Module):
    """mV [B, leads, samples] -> standardised, fp32.

    `mode`: `fixed` (mean and standard deviation per lead, in mV, of the training data) or `record` (each record's own).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_mv: Sequence[float], std_mv: Sequence[float], mode: str = "fixed") -> None:
        super().__init__()
        if mode not in SCALINGS:
            raise UserError(f"scaling={mode} is unknown; use fixed or record")
        self.mode = mode
        self.register_buffer("mean", torch.tensor(mean_mv, dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.tensor(std_mv, dtype=torch.float32)[:, None].clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.mode == "fixed":
            return (x - self.mean) / self.std
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / (x - mean).square().mean(-1, keepdim=True).sqrt().clamp_min(1e-3)


class Encoder(Pretrained, nn.Module):
    """mV [B, leads, samples] -> features [B, dim]: the scaling of its `config`, then the backbone.

    Raises `UserError` for an input of the wrong shape, `TypeError` for one that is no tensor. `from_pretrained`,
    `save_pretrained` and `push_to_hub` are those of `Pretrained`.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__()
        scaling = config.scaling
        self.config = config
        self.scaling = Scaling(scaling["mean_mv"], scaling["std_mv"], scaling["mode"])
        self.backbone = backbone
        self.dim = backbone.dim

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        features: Tensor = self.backbone(self.scaling(x))
        return features

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"the encoder takes a torch tensor, not {type(x).__name__}: give torch.as_tensor(x)")
        shape = (len(self.config.leads), self.config.samples)
        if x.ndim != 3 or tuple(x.shape[1:]) != shape:
            raise UserError(
                f"the encoder takes mV [batch, {shape[0]} leads, {shape[1]} samples at {self.config.rate:g} Hz], "
                f"not {list(x.shape)}: order the leads as encoder.config.leads, resample, and cut windows of that "
                "length"
            )
