"""Resampling on the device, as shards are made: the filter of `sharding.signal.resample`, as matrix products."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from umbra.signal import BETA, PERIODS

CHUNK = 64  # outputs that one product makes


@lru_cache(maxsize=64)
def low_pass(up: int, down: int) -> NDArray[np.float64]:
    """The default filter of scipy's `resample_poly` times `up`: Kaiser window, beta 5, 10 periods per side."""
    widest = max(up, down)
    time = np.arange(-PERIODS * widest, PERIODS * widest + 1)
    taps = np.sinc(time / widest) * np.kaiser(len(time), BETA)
    return taps * (up / taps.sum())


def seen(start: int, stop: int, up: int, down: int) -> tuple[int, int]:
    """The input samples [first, last) that outputs [start, stop) are made of; some may lie outside of the record."""
    half = PERIODS * max(up, down)
    return -((half - start * down) // up), ((stop - 1) * down + half) // up + 1


@lru_cache(maxsize=16)
def _products(up: int, down: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """(input samples [chunks, width] from `seen(start, ...)[0]` on, their weights [period, width, CHUNK]).

    The weights of a chunk are those of the one `period` later; the chunks are a multiple of it.
    """
    taps, half = low_pass(up, down), PERIODS * max(up, down)
    chunks = -(-count // CHUNK)
    period = min(up // math.gcd(up, CHUNK), chunks)
    outputs = start + np.arange(-(-chunks // period) * period * CHUNK).reshape(-1, CHUNK)
    width = ((CHUNK - 1) * down + 2 * half) // up + 1
    inputs = -((half - outputs[:, :1] * down) // up) + np.arange(width)
    place = half + inputs[:period, :, None] * up - outputs[:period, None, :] * down
    weights = np.where(abs(place - half) <= half, taps[place.clip(0, 2 * half)], 0.0)
    return torch.from_numpy(inputs - inputs[0, 0]), torch.from_numpy(weights)


def resample(x: Tensor, up: int, down: int, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Samples [start, stop) at the new rate of `x` [..., samples], zero phase, computed on `device` in `dtype`.

    As in a shard, the line through the first and last sample of `x` is subtracted before filtering and added back. Only
    the samples `seen` are moved there besides, so that a long record can be resampled piece by piece.
    """
    samples = x.shape[-1]
    if up == down:
        return x[..., start:stop].to(device, dtype)
    turns, rest = divmod(start, up)  # the weights repeat after `up` outputs
    inputs, weights = (part.to(device) for part in _products(up, down, rest, stop - start))
    first = seen(rest, rest + 1, up, down)[0] + turns * down
    last = first + int(inputs[-1, -1]) + 1
    low, high = max(first, 0), min(last, samples)
    begin, end = x[..., :1].to(device, dtype), x[..., -1:].to(device, dtype)
    step = (end - begin) / max(samples - 1, 1)
    level = x[..., low:high].to(device, dtype) - (begin + step * torch.arange(low, high, device=device))
    level = F.pad(level.reshape(-1, high - low), (low - first, last - high))
    level = level[:, inputs].unflatten(1, (-1, len(weights))).permute(2, 1, 0, 3).flatten(1, 2)  # the period first
    out = (
        (level @ weights.to(dtype)).unflatten(1, (-1, x[..., 0].numel())).permute(2, 1, 0, 3).reshape(*x.shape[:-1], -1)
    )
    line = begin + step * (torch.arange(start, stop, device=device).to(dtype) * (down / up))
    return out[..., : stop - start] + line
