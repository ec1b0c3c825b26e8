"""Keyed random numbers: one counter hash of (seed, epoch, view, operation, sample index, element), batched.

There is no generator state: a sample gets the same numbers alone or in any batch, on any rank, on CPU and GPU. Integers
and uniforms are bitwise identical everywhere, normals up to the last bit of a table computed in float64.

The mixer is `lowbias32` (C. Wellons, https://github.com/skeeto/hash-prospector), a bijection of 32-bit words, computed
in int64 tensors. Its second factor is written as the negative number congruent to it modulo 2^32, so that no product
overflows int64.
"""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
FACTORS = (0x7FEB352D, 0x846CA68B - (1 << 32))
LANES = (0x243F6A88, 0x85A308D3)  # the first two 32-bit words of pi's fractional part


@dataclass(frozen=True, eq=False)
class Key:
    """What the random numbers of a batch are a function of.

    `index` is int64 [B], the samples' rows in the data set; the numbers are computed on its device. `view`
    distinguishes the views of one sample. `seed` may have up to 64 bits.
    """

    seed: int
    epoch: int
    index: Tensor
    view: int = 0

    def with_view(self, view: int) -> Key:
        return replace(self, view=view)


def bits(key: Key, op: str, shape: tuple[int, ...] = ()) -> Tensor:
    """int64 [B, *shape], uniform in [0, 2^32).

    `op` names the operation: the same name gives the same numbers, another name independent ones. An element's
    number depends on its flat position in `shape`.
    """
    first, second = (_state(lane, key, op)[:, None] for lane in LANES)
    element = torch.arange(math.prod(shape), device=key.index.device)
    x = _mix_(element ^ first)
    x ^= second
    return _mix_(x).view(len(key.index), *shape)


def uniform(key: Key, op: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> Tensor:
    """float32 [B, *shape], uniform in [low, high) in steps of 2^-24 of the range (then rounded to float32)."""
    unit = (bits(key, op, shape) >> 8).to(torch.float32).mul_(2.0**-24)
    return unit.mul_(high - low).add_(low)


def normal(key: Key, op: str, shape: tuple[int, ...] = ()) -> Tensor:
    """float32 [B, *shape], standard normal, never beyond +-6.2.

    The sum of two normals over sqrt(2), each looked up by one half of a 32-bit word in a table of 2^16 quantiles:
    unlike the logarithms and cosines of Box-Muller, additions and look-ups give the same result on every device.
    """
    table = _quantiles(key.index.device)
    word = bits(key, op, shape)
    return (table[word >> 16] + table[word & 0xFFFF]).mul_(math.sqrt(0.5))


def integers(key: Key, op: str, shape: tuple[int, ...], high: int) -> Tensor:
    """int64 [B, *shape], uniform in [0, high), 1 <= high <= 2^31 (bias below high / 2^32: multiply and shift)."""
    if not 1 <= high <= 1 << 31:
        raise ValueError(f"high must be in [1, 2^31], not {high}")
    return (bits(key, op, shape) * high) >> 32


def _state(lane: int, key: Key, op: str) -> Tensor:
    """One 32-bit word per sample, int64 [B]: the mixer chained over the words of the key, starting from `lane`."""
    word: Any = lane
    for part in (key.seed, key.seed >> 32, key.epoch, key.view, zlib.crc32(op.encode()), key.index, key.index >> 32):
        word = _mix(word ^ (part & WORD))
    return word


def _mix(x: Any) -> Any:
    x = (x ^ (x >> 16)) * FACTORS[0] & WORD
    x = (x ^ (x >> 15)) * FACTORS[1] & WORD
    return x ^ (x >> 16)


def _mix_(x: Tensor) -> Tensor:
    """`_mix` in place, for the large tensors."""
    for shift, factor in ((16, FACTORS[0]), (15, FACTORS[1])):
        x ^= x >> shift
        x *= factor
        x &= WORD
    x ^= x >> 16
    return x


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """float32 [2^16]: the quantiles (i + 1/2) / 2^16 of the normal, scaled to unit variance."""
    table = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return (table / table.square().mean().sqrt()).to(torch.float32).to(device)
