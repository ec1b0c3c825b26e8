"""The registry of encoders. To add one, write a `Backbone` in this folder and add its name to `ENCODERS`.

A class or function makes a `Backbone` from `(leads, samples)` and arguments that its signature names, with a `dim`:
[B, leads, samples], scaled -> [B, dim]. It processes rows independently and without random numbers (no dropout);
torch's batch norm is allowed, see `trainer/game/batchnorm.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from umbra.arguments import arguments, fitted, shown
from umbra.encoders.backbone import Backbone
from umbra.encoders.resnet import ResNet
from umbra.encoders.vit import ViT
from umbra.encoders.xresnet import XResNet
from umbra.errors import UserError, building, near_miss

ENCODERS: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, layers=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, layers=(3, 4, 6, 3)),
    "vit_s": ViT,
    "xresnet1d101": partial(XResNet, layers=(3, 4, 23, 3)),
}


def build_encoder(name: str, leads: int, samples: int, args: dict[str, Any] | None = None) -> Backbone:
    """An encoder with random weights: [B, leads, samples], scaled -> [B, dim].

    Raises `UserError` for an unknown name and for arguments that are unknown, of the wrong type or out of range.
    """
    args = dict(args or {})
    if name not in ENCODERS:
        raise UserError(f"encoder.name={name} is unknown{near_miss(name, ENCODERS)}")
    known = arguments(ENCODERS[name], given=2)
    for key, value in args.items():
        if key not in known:
            raise UserError(f"encoder.args.{key} is not an argument of {name}{near_miss(key, known)}")
        try:
            args[key] = fitted(value, known[key])
        except TypeError:
            raise UserError(f"encoder.args.{key}={value} must be of type {shown(known[key])}") from None
    with building("encoder", {"encoder.name": name, **{f"encoder.args.{key}": value for key, value in args.items()}}):
        return ENCODERS[name](leads, samples, **args)


def whole_args(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """`args` of a registered encoder with the defaults of all that they leave out: two such are one architecture."""
    parameters = inspect.signature(ENCODERS[name]).parameters
    return {key: parameters[key].default for key in arguments(ENCODERS[name], given=2)} | args
