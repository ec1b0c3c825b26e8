"""The paper's masker (Bo et al. 2022): a residual U-Net at the full sampling rate.

Four levels with 1, 2, 3 and 4 times `width` channels (512 in the paper), each a fifth as long as the one above; the
average-pooled signal is concatenated to the input of each level below the second. The published count of 247 M
parameters includes a fifth level and linear maps that its forward pass never uses; the other 152 M are here. Group norm
replaces the paper's batch norm, so that masks do not depend on the number of processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.game.maskers.base import Masker
from trainer.game.maskers.unet import repeated
from umbra.encoders.layout import Conv, GroupNorm, laid_out
from umbra.errors import UserError

STRIDE, LEVELS, GROUPS, SQUEEZE = 5, 4, 8, 8


class PaperUNet(Masker):
    """[B, leads, T] scaled -> logits [B, masks, T]; a cell of the mask is one sample."""

    def __init__(self, leads: int, masks: int, width: int = 512, kernel: int = 5) -> None:
        super().__init__()
        if width % GROUPS:
            raise UserError(f"masker.width={width} is not a multiple of {GROUPS}")
        self.stride = 1
        channels = [width * (level + 1) for level in range(LEVELS)]
        joined = [leads, channels[0], channels[1] + leads, channels[2] + leads]
        self.down = nn.ModuleList(
            nn.Sequential(_conv(joined[i], c, kernel, STRIDE if i else 1), _Residual(c, kernel))
            for i, c in enumerate(channels)
        )
        self.up = nn.ModuleList(_conv(channels[i + 1] + channels[i], channels[i], kernel) for i in (2, 1, 0))
        self.head = Conv(width, masks, kernel, padding=kernel // 2)

    def whole(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        h = x = laid_out(x)
        for level, down in enumerate(self.down):
            if level > 1:
                h = torch.cat([h, F.adaptive_avg_pool2d(x, (1, h.shape[-1]))], 1)
            h = down(h)
            kept.append(h)
        for up, skip in zip(self.up, reversed(kept[:-1])):
            h = up(torch.cat([repeated(h, STRIDE)[..., : skip.shape[-1]], skip], 1))
        return self.head(h).squeeze(2)


class _Residual(nn.Module):
    """Two convolutions and an additive squeeze gate, with a skip connection."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels, kernel), _conv(channels, channels, kernel))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            Conv(channels, channels // SQUEEZE, 1),
            nn.ReLU(),
            Conv(channels // SQUEEZE, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return x + h + self.gate(h)


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        Conv(channels, out, kernel, stride=stride, padding=kernel // 2), GroupNorm(GROUPS, out), nn.ReLU()
    )
