"""The registry of encoders, and the two maskers. A new encoder is one file here, with an `ENCODERS` of its own.

An encoder is a module made of `(leads, samples, **arguments)` with a `dim`: [B, leads, samples] scaled -> [B, dim].
Rows are treated alone and no random numbers are drawn (no dropout); torch's batch norm may be part of it, see
`trainer/models/batchnorm.py`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from sharding.config import UserError
from trainer.models.masker import UNet
from trainer.models.paper_masker import PaperUNet

_GIVEN = {"leads", "samples", "layers", "return"}  # by the data or by the encoder's name, not by `encoder.args`


def _found() -> dict[str, Callable[..., nn.Module]]:
    """All encoders of the folder's files by name, sorted."""
    names = [f"{__name__}.{info.name}" for info in pkgutil.iter_modules(__path__) if info.name != "__main__"]
    found = [getattr(importlib.import_module(name), "ENCODERS", {}) for name in names]
    return dict(sorted((name, make) for encoders in found for name, make in encoders.items()))


ENCODERS = _found()


def build_encoder(name: str, leads: int, samples: int, args: dict[str, Any] | None = None) -> nn.Module:
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


def build_masker(name: str, leads: int, channels: int, hop: int, width: int, depth: int, kernel: int) -> nn.Module:
    """A masker with random weights: [B, leads, T] scaled -> logits [B, channels, T], `hop` samples per cell.

    Raises `UserError` for an unknown name and for sizes that cannot work.
    """
    with building("masker"):
        if name == "unet":
            return UNet(leads, channels, hop, width, depth, kernel)
        if name == "paper":
            return PaperUNet(leads, channels, width, kernel)
    raise UserError(f"masker.name={name} is unknown; use unet or paper")


@contextlib.contextmanager
def building(part: str) -> Iterator[None]:
    """Turns what torch says of a size that it cannot build into a `UserError` that names the `part` of the config."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"the {part} cannot be built from its keys {part}.*: {''.join(reason)}") from error
