"""Base class of the views: a dataclass whose fields are its arguments, called on a batch."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainer.views.random import Key
from umbra.arguments import fitted, shown
from umbra.errors import UserError


@dataclass(kw_only=True)
class View:
    """`view(x, key, rate)`: signals [B, leads, samples] in and out, same dtype and device; `rate` in Hz.

    `stage` is "signal" (works in mV, before scaling) or "mask" (works on the scaled signal, hidden = 0). `op` names
    its random numbers: two views of the same kind in a list have different names. All other fields are the arguments
    that a config may set; a value of the wrong type, or a number that is not finite, is a `UserError`. A list of views
    (`Views`) applies each to an ECG with the probability `share`; a view itself changes all.
    """

    stage: ClassVar[str]
    op: str
    leads: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for name in self.arguments():
            value, kind = getattr(self, name), kinds[name]
            try:
                setattr(self, name, fitted(value, kind))
            except TypeError:
                raise UserError(f"view '{self.op}': {name} must be of type {shown(kind)}, not {value!r}") from None
            value = getattr(self, name)
            if isinstance(value, float):
                self.require(math.isfinite(value), f"{name} must be a finite number, not {value:g}")
        self.require(0 < self.share <= 1, f"share must be above 0 and at most 1, not {self.share:g}")

    @classmethod
    def arguments(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls) if f.name not in ("op", "leads")]

    def require(self, fine: bool, what: str) -> None:
        """Raises `UserError` "view 'NAME': WHAT" unless `fine`."""
        if not fine:
            raise UserError(f"view '{self.op}': {what}")

    def check_signal(self, samples: int, rate: float) -> None:
        """Raises `UserError` if the view cannot work on signals of that many samples at `rate` Hz."""

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        raise NotImplementedError
