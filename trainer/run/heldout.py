"""The loss on held-out patients, and which shards a run reads again and again."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import PretrainConfig
from trainer.data.mixture import Mixture
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.run.pairs import make_pair
from trainer.run.parts import Run
from trainer.views import Key
from umbra.schema import Shard


def heldout_loss(run: Run) -> dict[str, Tensor]:
    """NT-Xent and accuracy on the first ECGs of the held-out patients, with the same views and masks each time."""
    assert run.heldout is not None
    world = run.world
    share = heldout_count(run.cfg.contrast, run.heldout.count, run.order.lanes) // world.size
    if share < 2:
        return {}
    indices = run.heldout.some(world.size * share)[world.rank * share : (world.rank + 1) * share]
    rows = run.heldout.rows_of(indices)
    wanted = [rows] if run.partners is None else [rows, run.partners(rows, 0)]
    signals, *others = (_heldout_signals(run.heldout, part, world.device) for part in wanted)
    key = Key(run.cfg.seed, 0, torch.from_numpy(rows).to(world.device))
    figures = run.game.evaluate(make_pair(run, signals, key, others[0] if others else None))
    return {f"heldout/{name}": value for name, value in figures.items()}


def heldout_count(contrast: int, count: int, lanes: int) -> int:
    """ECGs of a held-out loss: a contrast batch or, if there are fewer, a multiple of the lanes, at any world size."""
    most = min(contrast, count)
    return most - most % lanes or most


def _heldout_signals(heldout: Shards, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    empty = np.empty((len(rows), *heldout.shape), "<i2")
    return torch.from_numpy(heldout.gather(heldout.indices_of(rows), empty)).to(device)


def shown_shard(order: Order | Mixture) -> int:
    """The training shard whose first ECG is drawn with `wandb.upload_ecgs`: the first that is not excluded."""
    return next(i for i, n in enumerate(order.in_use) if n)


def kept_shards(cfg: PretrainConfig, order: Order | Mixture, train: Shards, heldout: Shards | None) -> list[Shard]:
    """The shards that a run reads repeatedly besides its batches; remote ones stay in the cache."""
    kept = [train.shards[shown_shard(order)]] if cfg.wandb.upload_ecgs else []
    if heldout is not None and cfg.log.heldout_every:
        most = max(cfg.contrast, cfg.log.probe_ecgs if cfg.log.probe else 0)
        ends, seen = np.cumsum(heldout.counts), heldout.some(min(most, heldout.count))
        kept += [heldout.shards[i] for i in np.unique(np.searchsorted(ends, seen, "right"))]
    return kept
