"""The registry of encoders. To add one, write a `Backbone` in this folder and add its name to `ENCODERS`.

An encoder is a `Backbone` constructed from `(leads, samples, **args)` with a `dim`: [B, leads, samples], scaled ->
[B, dim]. It processes rows independently and without random numbers (no dropout); torch's batch norm is allowed, see
`trainer/game/batchnorm.py`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import partial
from typing import Any

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
_GIVEN = {"leads", "samples", "layers", "return"}  # set by the data or the encoder's name, not by `encoder.args`


def build_encoder(name: str, leads: int, samples: int, args: dict[str, Any] | None = None) -> Backbone:
    """An encoder with random weights: [B, leads, samples], scaled -> [B, dim].

    Raises `UserError` for an unknown name and for arguments that are unknown, of the wrong type or out of range.
    """
    args = dict(args or {})
    if name not in ENCODERS:
        raise UserError(f"encoder.name={name} is unknown{near_miss(name, ENCODERS)}")
    known = {k: kind for k, kind in typing.get_type_hints(_class(ENCODERS[name]).__init__).items() if k not in _GIVEN}
    for key, value in args.items():
        if key not in known:
            raise UserError(f"encoder.args.{key} is not an argument of {name}{near_miss(key, known)}")
        if type(value) is not known[key]:
            raise UserError(f"encoder.args.{key}={value} must be of type {known[key].__name__}")
    with building("encoder"):
        return ENCODERS[name](leads, samples, **args)


def _class(make: Any) -> Any:
    return make.func if isinstance(make, partial) else make
