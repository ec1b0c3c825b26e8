"""The maskers by name."""

from __future__ import annotations

from trainer.game.maskers.base import Masker
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet
from umbra.errors import UserError, building


def build_masker(name: str, leads: int, channels: int, hop: int, width: int, depth: int, kernel: int) -> Masker:
    """A masker with random weights: [B, leads, T] scaled -> logits [B, channels, T], `hop` samples per cell.

    Raises `UserError` for an unknown name and for sizes that cannot work.
    """
    with building("masker"):
        if name == "unet":
            return UNet(leads, channels, hop, width, depth, kernel)
        if name == "paper":
            return PaperUNet(leads, channels, width, kernel)
    raise UserError(f"masker.name={name} is unknown; use unet or paper")
