"""The parts of a run, in one place for all that act on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed
from trainer.config import PretrainConfig
from trainer.data.audit_records import Recorder
from trainer.data.mixture import Mixture
from trainer.data.order import Order
from trainer.data.remote.cache import Cache
from trainer.data.remote.caches import Caches
from trainer.data.shards import Shards
from trainer.game.game import Game
from trainer.observe.metrics import Metrics
from trainer.observe.throughput import Throughput
from trainer.run.online_probe import OnlineProbe
from trainer.run.record import RunRecord
from trainer.run.saving import Saver
from trainer.views import Views
from trainer.views.pairing import Pairing
from umbra.encoders.encoder import Scaling

OfPatients = Callable[[NDArray[np.int64], int], NDArray[np.int64]]  # (rows, epoch) -> other rows of the same patients


@dataclass
class Run:
    """The parts of a run, built by `trainer/run/assemble.py`.

    `patients`: the code of each row of `samples.parquet`, on the device; `mfu_per_ecg`: one ECG's
    own operations over the bf16 peak per second of all devices (NaN if the peak is not known).
    """

    cfg: PretrainConfig
    world: distributed.World
    folder: Path
    train: Shards
    heldout: Shards | None
    order: Order | Mixture
    scaling: Scaling
    first: Views
    second: Views
    pairing: Pairing
    game: Game
    engines: dict[str, Any]
    metrics: Metrics
    record: RunRecord
    saver: Saver
    state: dict[str, Any]
    start: int
    total: int
    throughput: Throughput = field(default_factory=Throughput)
    cache: Cache | Caches | None = None  # of remote shards
    recorder: Recorder | None = None
    patients: Tensor | None = None
    mfu_per_ecg: float = math.nan
    at: int = 0  # the step that is being played, from 0
    partners: OfPatients | None = None
    probe: OnlineProbe | None = None
