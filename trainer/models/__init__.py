"""The registry of encoders: a new one is one file and one line here."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

from sharding.config import UserError
from trainer.models.resnet import ResNet, resnet18, resnet34

ENCODERS = {"resnet18": resnet18, "resnet34": resnet34}
_ARGUMENTS = {"resnet18": ResNet, "resnet34": ResNet}


def build_encoder(name: str, leads: int, samples: int, args: dict[str, Any] | None = None) -> nn.Module:
    """An encoder with random weights: [B, leads, samples] scaled -> [B, .dim]. Unknown names are a `UserError`."""
    args = dict(args or {})
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.3) or sorted(ENCODERS)
        raise UserError(f"encoder.name={name} is unknown; did you mean {near[0]}?")
    known = set(inspect.signature(_ARGUMENTS[name].__init__).parameters) - {"self", "leads", "samples"}
    for key in args:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3) or sorted(known)
            raise UserError(f"encoder.args.{key} is no argument of {name}; did you mean {near[0]}?")
    return ENCODERS[name](leads, samples, **args)
