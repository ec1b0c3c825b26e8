"""ViT-1D (Dosovitskiy et al. 2021, on patches along time): ViT-S by default.

Pre-norm blocks, fixed sine-cosine position embeddings, mean pooling over patches, no class token, no dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbra.encoders.backbone import Backbone
from umbra.encoders.layout import LayerNorm
from umbra.errors import UserError


class ViT(Backbone):
    """[B, leads, samples], scaled -> [B, width].

    `patch`: samples per token, over all leads (the last patch is padded with zeros); `ratio`: width of the MLP's
    hidden layer as a multiple of `width`. A patch's position is its time, so that ECGs of other lengths are taken too.
    """

    any_length = True
    positions: Tensor

    def __init__(
        self,
        leads: int,
        samples: int,
        patch: int = 25,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        for key, value in (("patch", patch), ("depth", depth), ("heads", heads), ("ratio", ratio)):
            if value < 1:
                raise UserError(f"encoder.args.{key}={value} must be >= 1")
        if width < 2 or width % (2 * heads):
            raise UserError(f"encoder.args.width={width} must be a multiple of twice encoder.args.heads={heads}")
        self.dim, self.patch = width, patch
        self.embed = nn.Conv1d(leads, width, patch, stride=patch)
        self.register_buffer("positions", sine_cosine(-(-samples // patch), width), persistent=False)
        self.blocks = nn.Sequential(*(_Block(width, heads, ratio) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(1)

    def tokens(self, x: Tensor) -> Tensor:
        patches = self.embed(F.pad(x, (0, -x.shape[-1] % self.patch))).transpose(1, 2)
        return self.norm(self.blocks(patches + self._places(patches.shape[1]).to(patches.dtype)))

    def _places(self, count: int) -> Tensor:
        """The position embeddings of `count` patches, [count, width]: by their time from the start of the ECG."""
        if not torch.compiler.is_exporting() and count <= len(self.positions):
            return self.positions[:count]
        return sine_cosine(count, self.dim).to(self.positions)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        each = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (one.transpose(1, 2) for one in each)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def sine_cosine(length: int, width: int) -> Tensor:
    """Position embeddings [length, width] of Vaswani et al. 2017, section 3.5: all sines, then all cosines."""
    frequencies = 10000 ** (-torch.arange(width // 2) / (width / 2))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):  # the patch embedding, initialised like a linear layer
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
