"""Views (augmentations) of a signal, applied in batches on the device, with keyed random numbers.

To add one: a `View` dataclass in a file of this folder, and its name in `VIEWS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.cell_mask import CellMask
from trainer.views.emg import Emg
from trainer.views.lead_drop import LeadDrop
from trainer.views.lead_gain import LeadGain
from trainer.views.masks import BlockMask, LeadDropout, TimeMask
from trainer.views.noise import Gaussian
from trainer.views.qrs_mask import QrsMask
from trainer.views.random import Key, uniform
from trainer.views.tones import Mains, Wander
from trainer.views.vcg import VCG
from umbra.errors import UserError, near_miss

VIEWS: dict[str, type[View]] = {
    "gaussian": Gaussian,
    "vcg": VCG,
    "block_mask": BlockMask,
    "time_mask": TimeMask,
    "lead_dropout": LeadDropout,
    "lead_drop": LeadDrop,
    "wander": Wander,
    "mains": Mains,
    "emg": Emg,
    "lead_gain": LeadGain,
    "cell_mask": CellMask,
    "qrs_mask": QrsMask,
}

STAGES = ("signal", "mask")

__all__ = ["VIEWS", "Key", "View", "Views", "build"]


@dataclass(frozen=True)
class Views:
    """The views of one list, by stage, in the list's order. An empty list changes nothing."""

    signal: list[View] = field(default_factory=list)
    mask: list[View] = field(default_factory=list)

    def signal_views(self, x: Tensor, key: Key, rate: float) -> Tensor:
        """x [B, leads, samples] in mV, before scaling."""
        return _apply(self.signal, x, key, rate)

    def mask_views(self, x: Tensor, key: Key, rate: float) -> Tensor:
        """x [B, leads, samples], scaled; hidden samples become 0."""
        return _apply(self.mask, x, key, rate)


def build(
    specs: Sequence[str | Mapping[str, Any]], leads: Sequence[str], signal: tuple[int, float] | None = None
) -> Views:
    """Builds the views of a config's list for signals with these leads; `signal`: their samples and rate, if known.

    A spec is a view's name or a mapping such as `{name: vcg, max_angle: 45}`. Raises `UserError` for an unknown view or
    argument (naming the nearest known one), a value out of range, or leads, a rate or a length that a view needs and
    the data do not have.
    """
    if isinstance(specs, str | Mapping):
        raise UserError(f"views must be a list such as [{{name: vcg}}, time_mask], not {specs!r}")
    views: list[View] = []
    for spec in specs:
        name, args = _parse(spec)
        count = 1 + sum(type(view) is VIEWS[name] for view in views)
        op = name if count == 1 else f"{name}#{count}"
        views.append(VIEWS[name](op=op, leads=tuple(leads), **args))
        if signal is not None:
            views[-1].check_signal(*signal)
        stage = getattr(views[-1], "stage", None)
        if stage not in STAGES:
            raise UserError(f"view '{name}': its stage {stage!r} is unknown; use {' or '.join(STAGES)}")
    return Views([v for v in views if v.stage == "signal"], [v for v in views if v.stage == "mask"])


def _apply(views: list[View], x: Tensor, key: Key, rate: float) -> Tensor:
    for view in views:
        x = view(x, key, rate) if view.share == 1 else _in_some(view, x, key, rate)
    return x


def _in_some(view: View, x: Tensor, key: Key, rate: float) -> Tensor:
    """The view of the share of ECGs that it is for, the others as they are."""
    chosen = uniform(key, f"{view.op}.share") < view.share
    return torch.where(chosen[:, None, None], view(x, key, rate), x)


def _parse(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    args = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    if "name" not in args:
        raise UserError(f"view {spec!r} must be a name or a mapping with a name, such as {{name: vcg, max_angle: 45}}")
    name = args.pop("name")
    if not isinstance(name, str) or name not in VIEWS:
        raise UserError(f"unknown view '{name}'{near_miss(name, VIEWS)}")
    known = VIEWS[name].arguments()
    for arg in args:
        if arg not in known:
            raise UserError(f"view '{name}': unknown argument '{arg}'{near_miss(arg, known)}")
    return name, args
