"""Fine-tuning and training from scratch: encoder and linear head together, selected on val alone.

A seed trains once with each candidate learning rate and keeps the epoch that is best on val; what it has kept looks
at the test records, once. A fit stops when val has not improved for `patience` epochs.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import OptimConfig
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import embed
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.kinds import Kind, kind_of
from trainer.evaluate.progress import Line
from trainer.evaluate.rates import parameter_groups
from trainer.evaluate.records import Batch, Records, Turns, free_bytes
from trainer.evaluate.task import Task
from trainer.run.engines import uses_bf16
from trainer.run.schedule import learning_rate
from trainer.views import Key, Views, build
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError
from umbra.hub import initialise


class Model(nn.Module):
    """mV [B, leads, samples] -> outputs [B, K] (see `Kind`)."""

    def __init__(self, encoder: Encoder, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder(x))
        return output


@dataclass(frozen=True)
class Tuned(Fitted):
    """What one seed has kept, or of several the one that is best on val: with its `model`."""

    seed: int
    model: Model
    kind: Kind
    notes: list[str]


@dataclass(frozen=True)
class Shared:
    """What all fits of a call have in common: the records on the device, and how they are used."""

    task: Task
    train: Records
    val: Records
    kind: Kind
    views: Views
    bf16: bool
    config: TransferConfig


@dataclass(frozen=True)
class Epoch:
    """An epoch of a fit (from 1): mean loss, value on val, train records a second; the model is as it left it."""

    number: int
    loss: float
    value: float
    speed: float


@dataclass(frozen=True)
class Best:
    """The best epoch of a fit: its value on val, its number, the model's weights."""

    value: float
    epoch: int
    state: dict[str, Tensor]


def finetune(task: Task, encoder: Encoder, chosen: np.ndarray, config: TransferConfig) -> list[Tuned]:
    """Trains encoder and linear head on the `chosen` train records, once a seed; what each seed has kept.

    Raises `UserError` if these records have all the same target, or if no learning rate gives a finite loss.
    """
    shared = share(task, chosen, config, next(encoder.parameters()).device)
    line = Line()
    try:
        return [_of_seed(shared, encoder, seed, line) for seed in config.finetune.seeds or [config.seed]]
    finally:
        line.keep()


def share(task: Task, chosen: np.ndarray, config: TransferConfig, device: torch.device) -> Shared:
    """Puts the chosen train records and those of val on the device.

    Raises `UserError` if the chosen records have all the same target, for views that are none, and for bf16 on a GPU
    without it.
    """
    part, tune = task.train.take(chosen), config.finetune
    if (part.target == part.target[0]).all():
        raise UserError(
            f"task '{task.name}': the {len(part)} train records in use all have the same label: raise fraction "
            f"(now {config.fraction:g}), or choose another task"
        )
    room = tune.memory_gb * 1e9 or free_bytes(device) / 2
    train = Records(part, device, room)
    val = Records(task.val, device, room - (train.bytes if train.held is not None else 0))
    manifest = part.shards.manifest
    views = build(tune.views, manifest.leads, (manifest.samples, manifest.rate))
    kind, bf16 = kind_of(task.kind, part.target), uses_bf16(tune.precision, device)
    return Shared(task, train, val, kind, views, bf16, config)


def _of_seed(shared: Shared, encoder: Encoder, seed: int, line: Line) -> Tuned:
    """What one seed keeps of its learning rates (the first of equal ones), and what that says of val and test."""
    model = with_head(encoder, len(shared.task.names), seed, shared.config)
    rates = shared.config.finetune.lr
    found = {lr: fit(shared, model, lr, seed, line) for lr in rates}
    fine = {lr: best for lr, best in found.items() if best is not None}
    if not fine:
        raise UserError(
            f"finetune.lr={rates}: the loss became infinite or not a number (seed {seed}); give a smaller one, such as "
            f"finetune.lr=[{min(rates) / 10:g}]"
        )
    lost = [f"finetune.lr={lr:g} is left out: its loss was not finite (seed {seed})" for lr in rates if lr not in fine]
    lr, best = max(fine.items(), key=lambda item: item[1].value)
    model.load_state_dict(best.state)
    val = shared.kind.predict(_outputs(model, shared))
    test = shared.kind.predict(embed(model, shared.task.test, shared.config.batch))
    return Tuned({"lr": lr, "epoch": best.epoch}, best.value, val, test, seed, model, shared.kind, lost)


def fit(shared: Shared, start: Model, lr: float, seed: int, line: Line) -> Best | None:
    """Trains a copy of `start`; its best epoch on val, or None if the loss became infinite or not a number."""
    model, best = copy.deepcopy(start), Best(-math.inf, 0, {})
    for epoch in epochs(shared, model, lr, seed):
        if epoch.value > best.value:
            best = Best(epoch.value, epoch.number, copy.deepcopy(model.state_dict()))
        line.show(_progress(shared, seed, lr, epoch, best))
        if not math.isfinite(epoch.loss + epoch.value):
            return None
    line.keep()
    return best


def with_head(encoder: Encoder, outputs: int, seed: int, config: TransferConfig) -> Model:
    """A copy of the encoder and a new linear head, drawn from `seed`, as is an encoder that was not pre-trained."""
    device = next(encoder.parameters()).device
    body = copy.deepcopy(encoder) if config.pretrained else initialise(encoder.config, seed).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.dim, outputs)
    return Model(body, head.to(device))


def epochs(shared: Shared, model: Model, lr: float, seed: int) -> Iterator[Epoch]:
    """Trains `model` in place and yields after each epoch, until the last one, `patience`, or a loss that is not
    finite."""
    tune, train = shared.config.finetune, shared.train
    turns = Turns(len(train), min(tune.batch, len(train)), seed)
    decay = tune.layer_decay if shared.config.pretrained else 1.0
    groups = parameter_groups(model.encoder.backbone, model.head, lr, decay, tune.weight_decay)
    optimizer, total = torch.optim.AdamW(groups, fused=True), tune.epochs * turns.steps
    rates = OptimConfig(warmup=tune.warmup)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(rates, 1.0, step, total))
    best, since = -math.inf, 0
    with contextlib.closing(train.shuffled(turns, tune.epochs)) as dealt:
        for number, batches in enumerate(dealt, start=1):
            began, losses = time.perf_counter(), []
            model.train()
            for batch in batches:
                losses.append(_loss(shared, model, batch, Key(seed, number, batch.row)))
                optimizer.zero_grad(set_to_none=True)
                losses[-1].backward()
                nn.utils.clip_grad_norm_(model.parameters(), tune.clip)
                optimizer.step()
                schedule.step()
                losses[-1] = losses[-1].detach()
            loss = float(torch.stack(losses).mean())
            speed = turns.steps * turns.batch / (time.perf_counter() - began)
            value = _value(shared, model) if math.isfinite(loss) else math.nan
            yield Epoch(number, loss, value, speed)
            best, since = (value, 0) if value > best else (best, since + 1)
            if not math.isfinite(loss + value) or since == tune.patience > 0:
                return


def _loss(shared: Shared, model: Model, batch: Batch, key: Key) -> Tensor:
    """The loss of a batch of train records, seen through the views."""
    encoder, head = model.encoder, model.head
    rate = encoder.config.rate
    x = shared.views.signal_views(batch.signals, key, rate)
    x = shared.views.mask_views(encoder.scaling(x), key, rate)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=shared.bf16):
        output = head(encoder.backbone(x))
    return shared.kind.loss(output.float(), batch.target)


def _value(shared: Shared, model: Model) -> float:
    """The value on val (see `Kind.value`); NaN if the predictions are not finite."""
    val = shared.kind.predict(_outputs(model, shared))
    return shared.kind.value(shared.task.val.target, val) if np.isfinite(val).all() else math.nan


def _outputs(model: Model, shared: Shared) -> np.ndarray:
    """What the model says of val, float32 `[n, K]`."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(x) for x in shared.val.in_order(shared.config.batch)]).float().cpu().numpy()


def _progress(shared: Shared, seed: int, lr: float, epoch: Epoch, best: Best) -> str:
    tune, score = shared.config.finetune, "R2" if shared.task.kind == "number" else "AUROC"
    fit = f"seed {seed}, lr {lr:g}" if len(tune.seeds) > 1 else f"lr {lr:g}"
    return (
        f"{fit}: epoch {epoch.number}/{tune.epochs}  loss {epoch.loss:.3f}  val {score} {epoch.value:.3f} "
        f"(best {best.value:.3f})  {epoch.speed:,.0f} ECG/s"
    )


def spread(fits: list[Tuned], target: np.ndarray) -> dict[str, Any]:
    """For the result: what each seed has kept with its `Kind.value` on val and test, and the mean and standard
    deviation of the latter over the seeds; `target`: of the test records."""
    each = [
        {"seed": fit.seed, **fit.chosen, "val": fit.val_value, "test": fit.kind.value(target, fit.prediction)}
        for fit in fits
    ]
    test = [one["test"] for one in each]
    return {"each": each, "mean": float(np.mean(test)), "sd": float(np.std(test, ddof=1)) if len(test) > 1 else None}
