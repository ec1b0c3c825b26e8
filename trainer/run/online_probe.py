"""Probes while a run goes on: ridge regression on features of held-out patients. They look on and steer nothing.

A run is bit-equal with them or without: they draw no random numbers and leave networks as they found them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed
from trainer.data.shards import Shards
from trainer.data.sources import Sources
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.kinds import Numbers, kind_of
from trainer.evaluate.reading import read_labels
from trainer.evaluate.ridge import decompose, ridge, scale_of
from umbra.config import load
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError
from umbra.layers import config_file

PENALTY = 1.0  # of standardised features and the mean squared error
CHUNK = 64  # ECGs of a forward pass


@dataclass(frozen=True)
class Labels:
    """The held-out ECGs of a task among those that are embedded: places `[n]`, targets `[n, K]`, half of each `[n]`.

    A patient's ECGs are in one half.
    """

    task: str
    kind: str
    place: NDArray[np.int64]
    target: NDArray[np.float32]
    second: NDArray[np.bool_]

    def value(self, features: np.ndarray) -> float:
        """AUROC (R2 of numbers) of a probe of each half on the other one, the mean; NaN if neither can be scored."""
        x = features[self.place]
        found = [_value(self.kind, x, self.target, fit) for fit in (~self.second, self.second)]
        known = [value for value in found if math.isfinite(value)]
        return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class OnlineProbe:
    """What is probed: tasks on the first `count` ECGs of the held-out patients."""

    heldout: Shards
    count: int
    tasks: list[Labels]

    def figures(self, engine: Any, scaling: Scaling, world: distributed.World) -> dict[str, Tensor]:
        """`probe/TASK` of each task and `heldout/effective_rank`, the same on every rank; NaN of features that are not
        finite, for a run may go on after steps whose loss is not."""
        features = self._features(engine, scaling, world)
        finite = bool(np.isfinite(features).all())
        found = {f"probe/{task.task}": task.value(features) if finite else math.nan for task in self.tasks}
        found["heldout/effective_rank"] = effective_rank(features) if finite else math.nan
        return {name: torch.tensor(value, device=world.device) for name, value in found.items()}

    @torch.no_grad()
    def _features(self, engine: Any, scaling: Scaling, world: distributed.World) -> np.ndarray:
        """Of all ECGs, before the projector, float32 `[count, D]`; each rank embeds its share."""
        share = math.ceil(self.count / world.size)  # as many for each, so the last ECG may come more than once
        backbone, parts = engine.module.backbone, []
        engine.module.eval()
        try:
            for start in range(world.rank * share, (world.rank + 1) * share, CHUNK):
                at = np.arange(start, min(start + CHUNK, (world.rank + 1) * share)).clip(max=self.count - 1)
                x = scaling(torch.from_numpy(self.heldout.read_mv(at)).to(world.device))
                with torch.autocast(
                    world.device.type, engine.torch_autocast_dtype(), enabled=engine.torch_autocast_enabled()
                ):
                    parts.append(backbone(x).float())
        finally:
            engine.module.train()
        return torch.cat(distributed.gather_tensors(torch.cat(parts)))[: self.count].cpu().numpy()


def open_probe(names: list[str], heldout: Shards | None, count: int) -> OnlineProbe | None:
    """The tasks `configs/transfer/NAME.yaml` on the first `count` held-out ECGs; None without names.

    Raises `UserError` for a task that is not there, does not fit the data, or has too few labels among these ECGs.
    """
    if not names:
        return None
    if heldout is None:
        raise UserError(f"log.probe={names[0]}: the data set has no val split to probe: leave it out")
    if isinstance(heldout, Sources):
        if len(heldout.manifests) > 1:
            raise UserError(f"log.probe={names[0]}: a task is of one data set, data.path names several: leave it out")
        (heldout,) = heldout.parts.values()
    return OnlineProbe(heldout, count, [_labels(name, heldout, count) for name in names])


def _labels(name: str, heldout: Shards, count: int) -> Labels:
    path = config_file(f"configs/transfer/{name}.yaml")
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"log.probe={name}: {path} does not exist; there are: {there}")
    task = load(TransferConfig, path, [f"data={heldout.root}"])
    known = read_labels(task, heldout)
    known = known.take(np.flatnonzero(known.index < count))
    unique, of = np.unique(known.patient, return_inverse=True)
    second = (np.random.default_rng(0).permutation(len(unique)) % 2 == 1)[of]
    found = Labels(name, task.kind, known.index, known.target, second)
    if not math.isfinite(found.value(np.zeros((count, 1), np.float32))):
        raise UserError(
            f"log.probe={name}: the first {count} held-out ECGs have too few labels of it to fit on one half of the "
            "patients and score on the other: raise log.probe_ecgs, or leave it out"
        )
    return found


def _value(kind: str, x: np.ndarray, target: np.ndarray, fit: np.ndarray) -> float:
    """A probe fitted on the records `fit`, scored on the others; NaN if that cannot be."""
    if not 1 < fit.sum() < len(fit) - 1:
        return math.nan
    mean, std = scale_of(x[fit])
    x = (x - mean) / std
    of = kind_of(kind, target[fit])
    wanted = (target[fit] - of.mean) / of.std if isinstance(of, Numbers) else target[fit]
    ((weights, intercept),) = ridge(decompose(x[fit]), wanted, [PENALTY])
    told = x[~fit] @ weights + intercept
    return of.value(target[~fit], of.predict(told) if isinstance(of, Numbers) else told)


def effective_rank(features: np.ndarray) -> float:
    """The exponential of the entropy of the shares of the singular values of features `[n, D]`.

    RankMe, Garrido et al. 2023; between 1 and D.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-300)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
