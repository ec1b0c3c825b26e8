"""Base class of the maskers."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.game.chunks import in_chunks
from trainer.game.lowered import lowered


class Masker(nn.Module):
    """[B, leads, T] scaled -> logits [B, channels, cells]. `chunk`: rows per forward pass (0: all), see `in_chunks`."""

    chunk: int = 0

    def forward(self, x: Tensor) -> Tensor:
        return in_chunks(lowered(self), x, self.chunk)

    def whole(self, x: Tensor) -> Tensor:
        """The forward pass of one chunk."""
        raise NotImplementedError
