"""Memory of a run on each device: states by counting parameters, activations by measuring a few ECGs.

Formulas and sources: docs/planning.md. All weights are fp32 (autocast changes only what is computed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from trainer.config import PretrainConfig
from trainer.game.game import Game, Pair, Still
from trainer.game.players import Players
from trainer.views import Key

FP32 = 4
BUCKET = 5 * 10**8 * FP32  # DeepSpeed's reduce_bucket_size, in bytes
FEW = 2, 4  # ECGs of the measured steps


@dataclass(frozen=True)
class States:
    """Bytes on each device; `buffers` are DeepSpeed's own at stage 3."""

    weights: float
    gradients: float
    optimiser: float
    buffers: float = 0.0

    @property
    def at_rest(self) -> float:
        """Between two steps, when there are no gradients."""
        return self.weights + self.optimiser + self.buffers

    @property
    def total(self) -> float:
        return self.at_rest + self.gradients


def states(stage: int, parameters: Sequence[int], world: int) -> States:
    """The states of players with that many parameters each, of `world` processes at a ZeRO stage.

    AdamW keeps two moments; from stage 1 on DeepSpeed keeps an fp32 copy of the partition besides, although the weights
    are fp32. Rajbhandari et al. 2020 (arXiv:1910.02054), section 3 and 5; DeepSpeed 0.19.8.
    """
    whole = FP32 * sum(parameters)
    part = whole / world
    if stage == 0:
        return States(whole, whole, 2 * whole)
    if stage == 1:
        return States(whole, whole, 3 * part)
    if stage == 2:
        return States(whole, min(whole, part + BUCKET), 3 * part)
    return States(part, part, 3 * part, BUCKET * len(parameters))


def tensors(both: Players) -> list[list[int]]:
    """The numbers of parameters in the tensors of each player."""
    return [[p.numel() for p in module.parameters()] for module in both if module is not None]


def activations(cfg: PretrainConfig, both: Players, leads: int, samples: int, rate: float) -> float:
    """Bytes that autograd keeps for the backward of a step, fp32, for each ECG: measured on a few, without chunks."""
    encoder, masker = both
    device = torch.device("cpu")
    encoder.chunk = 0
    if masker is not None:
        masker.chunk = 0
    engines = [Still(cast(nn.Module, m), device, bf16=False) if m is not None else None for m in both]
    game = Game(cast(Any, engines[0]), engines[1], cfg.game, cfg.temperature, hop=cfg.game.hop(rate), total=1)
    kept = []
    for count in FEW:
        x, v = torch.randn(2, count, leads, samples)
        alive = Kept()
        with saved_tensors_hooks(alive.pack, alive.unpack):
            game.step([Pair(x, v, Key(0, 0, torch.arange(count)))], 0)
        kept.append(alive.most)
    return max(0.0, (kept[1] - kept[0]) / (FEW[1] - FEW[0]))


class Kept:
    """Tracks the peak number of bytes that autograd saves, counting each storage once."""

    def __init__(self) -> None:
        self.most, self._now = 0, 0
        self._users: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        if self._users.get(where, 0) == 0:
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
        self._users[where] = self._users.get(where, 0) + 1
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        self._users[where] = self._users.get(where, 1) - 1
        if self._users[where] == 0:
            self._now -= storage.nbytes()
        return tensor
