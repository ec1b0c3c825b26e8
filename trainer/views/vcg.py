"""3KG's spatial view: the vectorcardiogram, rotated and scaled (Gopal et al. 2021, arXiv 2106.04452)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.views.base import View
from trainer.views.random import Key, uniform
from umbra.leads import CANONICAL, DERIVED, INDEPENDENT, derived

# Edenbrandt and Pahlm 1988, J Electrocardiol 21(4): 361-367; rows X, Y, Z, columns in the order of INDEPENDENT.
INVERSE_DOWER = (
    (0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194),
    (-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048),
    (0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108),
)


@dataclass(kw_only=True)
class VCG(View):
    """Leads -> vectorcardiogram (VCG) -> rotated and scaled -> leads, on signals in mV.

    I, II and V1-V6 give the VCG by the inverse Dower matrix. It is rotated about z, then y, then x, each by an angle
    from U(-max_angle, max_angle) degrees, its axes are scaled by factors from U(1, max_scale), and the pseudo-inverse
    maps it back to the eight leads. III, aVR, aVL and aVF follow from the new I and II (Einthoven, Goldberger). As in
    3KG, components of the eight leads outside the three dimensions of the VCG are dropped. An ECG of which one of the
    eight is 0 throughout (filled in for a lead that was not recorded) has no VCG and stays as it is; noise that is
    added before hides that. Arithmetic is float32 for any dtype and under autocast. Raises `UserError` if the data
    lack a lead of the eight or have one beyond the twelve.
    """

    stage: ClassVar[str] = "signal"
    max_angle: float = 45.0
    max_scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.max_angle <= 180, f"max_angle must be 0 to 180 degrees, not {self.max_angle:g}")
        self.require(self.max_scale >= 1, f"max_scale must be at least 1, not {self.max_scale:g}")
        have, out = ", ".join(self.leads), "leave the view out (adversarial.yaml: views.both=[])"
        missing = [lead for lead in INDEPENDENT if lead not in self.leads]
        self.require(not missing, f"needs lead {', '.join(missing)}, but the data have {have}; {out}")
        foreign = [lead for lead in self.leads if lead not in CANONICAL]
        self.require(not foreign, f"cannot derive lead {', '.join(foreign)} from the vectorcardiogram; {out}")

    def __call__(self, x: Tensor, key: Key, rate: float) -> Tensor:
        forward, back = _matrices(x.device)
        angles = uniform(key, f"{self.op}.angle", (3,), -math.radians(self.max_angle), math.radians(self.max_angle))
        scales = uniform(key, f"{self.op}.scale", (3,), 1.0, self.max_scale)
        move = scales.double()[:, :, None] * rotation(angles.double())
        move = _product(move, forward.expand(len(x), 3, 8)).to(torch.float32)
        eight = torch.stack([x[:, self.leads.index(lead)] for lead in INDEPENDENT], 1).to(torch.float32)
        vector = _product(move, eight)
        moved = _all_leads(_product(back.expand(len(x), 8, 3), vector), self.leads).to(x.dtype)
        lacking = (eight == 0).all(2).any(1)
        return torch.where(lacking[:, None, None], x, moved)


def rotation(angles: Tensor) -> Tensor:
    """[B, 3, 3] from [B, 3] angles in radians: about fixed z by the first, then fixed y, then fixed x (Rx Ry Rz)."""
    (sz, sy, sx), (cz, cy, cx) = angles.sin().unbind(1), angles.cos().unbind(1)
    rows = (
        (cy * cz, -cy * sz, sy),
        (cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy),
        (sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[B, n, m] times [B, m, T], summed in a fixed order: the same in any batch, not affected by autocast or TF32."""
    total = a[:, :, 0, None] * b[:, None, 0]
    for k in range(1, a.shape[2]):
        total += a[:, :, k, None] * b[:, None, k]
    return total


def _all_leads(eight: Tensor, leads: Sequence[str]) -> Tensor:
    named = dict(zip(INDEPENDENT, eight.unbind(1)))
    named |= {lead: derived(lead, named["I"], named["II"]) for lead in DERIVED}
    return torch.stack([named[lead] for lead in leads], 1)


@functools.cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """The inverse Dower matrix, float64 [3, 8], and its pseudo-inverse, float32 [8, 3]."""
    forward = torch.tensor(INVERSE_DOWER, dtype=torch.float64)
    return forward.to(device), torch.linalg.pinv(forward).to(device, torch.float32)
