"""The encoders by name. To add one: a `Backbone` in a file of this folder, and its name in `ENCODERS`.

An encoder is a `Backbone` made of `(leads, samples, **arguments)` with a `dim`: [B, leads, samples] scaled -> [B, dim].
Rows are treated alone and no random numbers are drawn (no dropout); torch's batch norm may be part of it, see
`trainer/game/batchnorm.py`.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from umbra.encoders.backbone import Backbone
from umbra.encoders.resnet import ResNet
from umbra.encoders.vit import ViT
from umbra.encoders.xresnet import XResNet
from umbra.errors import UserError, building

ENCODERS: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, layers=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, layers=(3, 4, 6, 3)),
    "vit_s": ViT,
    "xresnet1d101": partial(XResNet, layers=(3, 4, 23, 3)),
}
_GIVEN = {"leads", "samples", "layers", "return"}  # by the data or by the encoder's name, not by `encoder.args`


def build_encoder(name: str, leads: int, samples: int, args: dict[str, Any] | None = None) -> Backbone:
    """An encoder with random weights: [B, leads, samples] scaled -> [B, .dim].

    Raises `UserError` for an unknown name and for arguments that are unknown, of the wrong type or out of range.
    """
    args = dict(args or {})
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.3) or sorted(ENCODERS)
        raise UserError(f"encoder.name={name} is unknown; did you mean {near[0]}?")
    known = {k: kind for k, kind in typing.get_type_hints(_class(ENCODERS[name]).__init__).items() if k not in _GIVEN}
    for key, value in args.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3) or sorted(known)
            raise UserError(f"encoder.args.{key} is no argument of {name}; did you mean {near[0]}?")
        if type(value) is not known[key]:
            raise UserError(f"encoder.args.{key}={value} must be of type {known[key].__name__}")
    with building("encoder"):
        return ENCODERS[name](leads, samples, **args)


def _class(make: Any) -> Any:
    return make.func if isinstance(make, partial) else make
