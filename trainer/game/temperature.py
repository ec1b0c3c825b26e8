"""A learned temperature (Radford et al. 2021, section 2.5: its inverse is log-parameterised and clipped at 100)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LEAST, MOST = 0.01, 1.0


class Temperature(nn.Module):
    """() -> the temperature, a scalar between `LEAST` and `MOST`, initially `start`. The parameter is log(1 / t).

    At a bound, a gradient that points outward is zeroed; clamping the parameter in place would not reach an optimiser
    that keeps its own copies (ZeRO). `value` is the result of the last call.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-math.log(start)]))  # [1]: DeepSpeed broadcasts no scalars
        self.value = torch.tensor(start)

    def forward(self) -> Tensor:
        temperature: Tensor = _Bounded.apply(self.log_scale).neg().exp().squeeze(0)
        self.value = temperature.detach()
        return temperature


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        low, high = -math.log(MOST), -math.log(LEAST)
        ctx.save_for_backward(x <= low, x >= high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        below, above = ctx.saved_tensors
        outward = (below & (gradient > 0)) | (above & (gradient < 0))
        return gradient.masked_fill(outward, 0)
