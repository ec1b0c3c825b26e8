"""XResNet-1D, the standard encoder of PTB-XL (Strodthoff et al. 2020, after fastai's xresnet and He et al. 2019).

As published: a stem of three convolutions, kernel size 5, bottleneck blocks of width 64 and expansion 4 in all four
stages, average pooling before the convolution of the shortcut (ResNet-D), the last norm of each block initialised to
zero. `pooling: concat` gives its head's concatenation of mean and maximum, `norm: batch` its batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from umbra.encoders.backbone import Backbone
from umbra.encoders.layout import Conv, Layers, MaxPool, added, laid_out
from umbra.encoders.resnet import make_norm
from umbra.errors import UserError

EXPANSION = 4


class XResNet(Backbone):
    """[B, leads, samples], scaled -> [B, 4 width], or [B, 8 width] with `pooling: concat` (mean and maximum).

    `width`: channels inside a block; `norm`: `group` (per ECG) or `batch` (`trainer/game/batchnorm.py`).
    """

    any_length = True

    def __init__(
        self,
        leads: int,
        samples: int,
        layers: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        kernel: int = 5,
        pooling: str = "mean",
        norm: str = "group",
        groups: int = 8,
    ) -> None:
        super().__init__()
        for key, value in (("width", width), ("kernel", kernel), ("groups", groups)):
            if value < 1:
                raise UserError(f"encoder.args.{key}={value} must be >= 1")
        if width % (2 * groups):
            raise UserError(f"encoder.args.width={width} must be a multiple of twice encoder.args.groups={groups}")
        if kernel % 2 == 0:
            raise UserError(f"encoder.args.kernel={kernel} must be odd")
        if pooling not in ("mean", "concat"):
            raise UserError(f"encoder.args.pooling={pooling} is unknown; use mean or concat")
        normed = make_norm(norm, groups, width // 2)
        self.concat, self.dim = pooling == "concat", EXPANSION * width * (1 + (pooling == "concat"))
        stem = [leads, width // 2, width // 2, width]
        convs = [_conv(a, b, kernel, normed, 2 if i == 0 else 1) for i, (a, b) in enumerate(pairwise(stem))]
        self.stem = Layers(*(Layers(c, nn.ReLU()) for c in convs), MaxPool())
        blocks: list[_Block] = []
        channels = width
        for stage, depth in enumerate(layers):
            for place in range(depth):
                blocks.append(_Block(channels, width, kernel, normed, 2 if stage and not place else 1))
                channels = EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialise)
        for block in blocks:
            nn.init.zeros_(block.body[-1][-1].weight)  # type: ignore[index, union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.stem(laid_out(x))).flatten(2)
        return torch.cat([h.mean(-1), h.amax(-1)], 1) if self.concat else h.mean(-1)

    def tokens(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(laid_out(x))).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, kernel: int, norm: Callable[[int], nn.Module], stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.body = Layers(
            _conv(channels, width, 1, norm),
            nn.ReLU(),
            _conv(width, width, kernel, norm, stride),
            nn.ReLU(),
            _conv(width, out, 1, norm),
        )
        average = nn.AvgPool2d((1, stride), ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        self.skip = nn.Sequential(average, _conv(channels, out, 1, norm) if channels != out else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return added(self.body(x), self.skip(x)).relu_()


def _conv(channels: int, out: int, kernel: int, norm: Callable[[int], nn.Module], stride: int = 1) -> Layers:
    return Layers(Conv(channels, out, kernel, stride, padding=kernel // 2, bias=False), norm(out))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
