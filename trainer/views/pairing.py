"""Where the two views of an ECG come from: one window, its halves, two crops of it, or two windows of a patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.random import Key, integers
from umbra.config import check_fields, setting
from umbra.errors import UserError

KINDS = ("same", "halves", "crops", "patient")


@dataclass
class PairConfig:
    """Where the two views of a pair come from; `pair=KIND` is short for `pair.kind=KIND` (`umbra.layers`)."""

    short: ClassVar[str] = "kind"
    kind: str = setting("same", choices=KINDS)
    """Also as `pair=...`. `same`: both are the window; `halves`: its first and its second half (CMSC: Kiyasseh et al.
    2021); `crops`: two pieces of `seconds` each, anywhere in it, which may overlap; `patient`: the window and another
    window of the same patient, redrawn each epoch (the same window if the patient has only one)."""
    seconds: float = setting(0.0, ">= 0 and <= 1000000")
    """Length of a view; only with `crops`. The encoder still takes whole windows, and any other length."""

    def check(self) -> None:
        """Raises `UserError` for a value out of range or a combination that cannot work."""
        check_fields(self, "pair.")
        if self.kind == "crops" and not self.seconds:
            raise UserError("pair=crops needs the length of a view: give pair.seconds=S")
        if self.kind != "crops" and self.seconds:
            raise UserError(f"pair.seconds={self.seconds:g} has no effect without pair=crops: leave it out")


@dataclass(frozen=True)
class Pairing:
    """How the windows of a batch are cut into views of `samples` samples each."""

    kind: str
    samples: int

    def cut(self, first: Tensor, second: Tensor, keys: tuple[Key, Key]) -> tuple[Tensor, Tensor]:
        """The two views [B, leads, `samples`] of windows [B, leads, T], of any type: `first` and `second` are the same
        tensor, or windows of the same patients. The crop of a side is drawn by its key."""
        if self.kind == "halves":
            return first[..., : self.samples], second[..., second.shape[-1] - self.samples :]
        if self.kind == "crops":
            return self._crop(first, keys[0]), self._crop(second, keys[1])
        return first, second

    def _crop(self, x: Tensor, key: Key) -> Tensor:
        """One piece of each window; every start that fits is equally likely."""
        start = integers(key, "crop", (1, 1), x.shape[-1] - self.samples + 1)
        place = start + torch.arange(self.samples, device=x.device)
        return x.gather(-1, place.expand(-1, x.shape[1], -1))


def pairing(cfg: PairConfig, samples: int, rate: float) -> Pairing:
    """The pairing for windows of `samples` samples at `rate` Hz. Raises `UserError` if a view does not fit into one."""
    length = {"halves": samples // 2, "crops": round(cfg.seconds * rate)}.get(cfg.kind, samples)
    if length > samples:
        raise UserError(
            f"pair.seconds={cfg.seconds:g} is longer than the windows of the data, {samples / rate:g} s: give less, or "
            "build longer windows"
        )
    if length < 2:
        key = f"pair.seconds={cfg.seconds:g}" if cfg.kind == "crops" else f"pair={cfg.kind}"
        raise UserError(f"{key} leaves views of {length} samples at {rate:g} Hz: too short")
    return Pairing(cfg.kind, length)
