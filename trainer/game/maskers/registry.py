"""The maskers by name. To add one: a `Masker` in a file of this folder, and its name in `MASKERS`."""

from __future__ import annotations

from collections.abc import Callable

from trainer.game.maskers.base import Masker
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet
from umbra.errors import UserError, building, near_miss

# name -> (leads, channels, samples per cell, width, depth, kernel) -> masker
MASKERS: dict[str, Callable[[int, int, int, int, int, int], Masker]] = {
    "unet": UNet,
    "paper": lambda leads, channels, hop, width, depth, kernel: PaperUNet(leads, channels, width, kernel),
}


def build_masker(name: str, leads: int, channels: int, hop: int, width: int, depth: int, kernel: int) -> Masker:
    """A masker with random weights: [B, leads, T] scaled -> logits [B, channels, T], `hop` samples per cell.

    Raises `UserError` for an unknown name and for sizes that cannot work.
    """
    if name not in MASKERS:
        raise UserError(f"masker.name={name} is unknown{near_miss(name, MASKERS)}")
    sizes = {"name": name, "width": width, "depth": depth, "kernel": kernel}
    with building("masker", {f"masker.{key}": value for key, value in sizes.items()}):
        return MASKERS[name](leads, channels, hop, width, depth, kernel)
