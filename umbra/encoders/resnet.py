"""ResNet-1D for ECGs (He et al. 2016, in one dimension; the encoder of Bo et al. 2022).

At the default width it has 4,111,488 parameters, as the paper's encoder does: ResNet18 with kernel size 3, a stem of
kernel size 7 and a linear layer from the pooled features to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from umbra.encoders.backbone import Backbone
from umbra.encoders.layout import Conv, GroupNorm, Layers, MaxPool, added, laid_out
from umbra.errors import UserError


class ResNet(Backbone):
    """[B, leads, samples], scaled -> [B, embedding].

    `norm`: `group` (per ECG) or `batch` (`trainer/game/batchnorm.py`); `activation`: `relu` or `gelu`.
    """

    any_length = True

    def __init__(
        self,
        leads: int,
        samples: int,
        width: int = 64,
        layers: Sequence[int] = (2, 2, 2, 2),
        embedding: int = 512,
        norm: str = "group",
        groups: int = 8,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for key, value in (("width", width), ("embedding", embedding), ("groups", groups)):
            if value < 1:
                raise UserError(f"encoder.args.{key}={value} must be >= 1")
        normed, act = make_norm(norm, groups, width), _activation(activation)
        self.dim = embedding
        self.stem = Layers(
            Conv(leads, width, 7, stride=2, padding=3, bias=False),
            normed(width),
            act(),
            MaxPool(),
        )
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(layers):
            out = width * 2**stage
            for block in range(depth):
                stages.append(_Block(channels, out, 2 if stage > 0 and block == 0 else 1, normed, act))
                channels = out
        self.stages = nn.Sequential(*stages)
        self.embed = nn.Linear(channels, embedding)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.stages(self.stem(laid_out(x))).flatten(2).mean(-1))

    def tokens(self, x: Tensor) -> Tensor:
        return self.embed(self.stages(self.stem(laid_out(x))).flatten(2).transpose(1, 2))


class _Block(nn.Module):
    def __init__(
        self, channels: int, out: int, stride: int, norm: Callable[[int], nn.Module], act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.body = Layers(
            Conv(channels, out, 3, stride=stride, padding=1, bias=False),
            norm(out),
            act(),
            Conv(out, out, 3, padding=1, bias=False),
            norm(out),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.skip = nn.Sequential(Conv(channels, out, 1, stride=stride, bias=False), norm(out))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(added(self.body(x), self.skip(x)))


def make_norm(name: str, groups: int, width: int) -> Callable[[int], nn.Module]:
    """channels -> norm layer: `group` (channels a multiple of `width`) or `batch`. Raises `UserError` otherwise."""
    if name == "group":
        if width % groups:
            raise UserError(f"encoder.args.width={width} is not a multiple of encoder.args.groups={groups}")
        return lambda channels: GroupNorm(groups, channels)
    if name == "batch":
        return nn.BatchNorm2d
    raise UserError(f"encoder.args.norm={name} is unknown; use group or batch")


def _activation(name: str) -> Callable[[], nn.Module]:
    if name == "relu":
        return nn.ReLU
    if name == "gelu":
        return nn.GELU
    raise UserError(f"encoder.args.activation={name} is unknown; use relu or gelu")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
