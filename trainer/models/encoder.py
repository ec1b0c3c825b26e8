"""What leaves the house: scaling and backbone in one module, millivolt in, features out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sharding.config import UserError


class Scaling(nn.Module):
    """mV [B, leads, samples] -> scaled, fp32: by a fixed mean and deviation per lead, or by each record's own.

    `mode` is `fixed` (the training data's mean and deviation, in mV) or `record`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_mv: Sequence[float], std_mv: Sequence[float], mode: str = "fixed") -> None:
        super().__init__()
        if mode not in ("fixed", "record"):
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


class Encoder(nn.Module):
    """mV [B, leads, samples] -> features [B, dim]."""

    def __init__(self, backbone: nn.Module, mean_mv: Sequence[float], std_mv: Sequence[float], mode: str) -> None:
        super().__init__()
        self.scaling = Scaling(mean_mv, std_mv, mode)
        self.backbone = backbone
        self.dim = backbone.dim

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(self.scaling(x))
