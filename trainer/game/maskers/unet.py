"""The default masker: a small 1-D U-Net (Ronneberger et al. 2015) with a strided stem.

A time mask needs no finer grid than about 10 ms, so the stem downsamples to `resolution_s`; the U-Net works at that
resolution, and its logits are repeated to the length of the signal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.game.maskers.base import Masker
from umbra.encoders.layout import Conv, GroupNorm, as_stored, laid_out
from umbra.errors import UserError


class UNet(Masker):
    """[B, leads, T] scaled -> logits [B, masks, T], piecewise constant over `stride` samples.

    `stride` samples per cell of the mask, `width` channels at the finest level, doubled at each of `depth` levels.
    """

    def __init__(
        self, leads: int, masks: int, stride: int, width: int = 32, depth: int = 2, kernel: int = 5, groups: int = 8
    ) -> None:
        super().__init__()
        if width % groups:
            raise UserError(f"masker.width={width} is not a multiple of {groups}")
        self.stride = stride
        size = max(kernel, 2 * stride + 1)
        self.stem = Conv(leads, width, size, stride=stride, padding=(size - stride + 1) // 2)
        channels = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_Conv(channels[max(i - 1, 0)], channels[i], kernel, groups) for i in range(depth + 1))
        self.up = nn.ModuleList(
            _Conv(channels[i + 1] + channels[i], channels[i], kernel, groups) for i in reversed(range(depth))
        )
        self.head = Conv(width, masks, 1)

    def whole(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        cells = -(-length // self.stride)
        h = self.stem(laid_out(F.pad(x, (0, cells * self.stride - length))))[..., :cells]
        kept: list[Tensor] = []
        for level, conv in enumerate(self.down):
            h = conv(_halved(h) if level else h)
            kept.append(h)
        for level, conv in enumerate(self.up):
            skip = kept[-2 - level]
            h = conv(torch.cat([repeated(h, 2)[..., : skip.shape[-1]], skip], 1))
        return self.head(h).squeeze(2).repeat_interleave(self.stride, -1)[..., :length]


def _halved(h: Tensor) -> Tensor:
    """Means of pairs; an odd last one is kept. `count_include_pad` has no effect on the result (there is no padding),
    but when true the gradient under torch.compile is wrong (pytorch issue 198119)."""
    return F.avg_pool2d(h, (1, 2), ceil_mode=True, count_include_pad=False)


def repeated(h: Tensor, times: int) -> Tensor:
    """[B, C, 1, L] -> [B, C, 1, times L], each sample `times` times, in the layout of h."""
    with as_stored(h):
        return F.interpolate(h, scale_factor=(1.0, float(times)), mode="nearest")


class _Conv(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Conv(channels, out, kernel, padding=kernel // 2),
            GroupNorm(groups, out),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
