"""Fine-tuning and training from scratch: encoder and linear head together."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import embed, signals
from trainer.evaluate.fitted import Fitted
from trainer.evaluate.kinds import Kind, kind_of
from trainer.evaluate.task import Labelled, Task
from umbra.encoders.encoder import Encoder


def finetune(task: Task, encoder: Encoder, chosen: np.ndarray, config: TransferConfig) -> Fitted:
    """Trains encoder and linear head on the `chosen` train records; selects the learning rate and epoch on val."""
    best: Fitted | None = None
    kind = kind_of(task.kind, task.train.target[chosen])
    for lr in config.finetune.lr:
        model = _with_head(copy.deepcopy(encoder), len(task.names), config.seed)
        for epoch, state in enumerate(_epochs(model, task.train.take(chosen), kind, lr, config), start=1):
            val = kind.predict(embed(state, task.val, config.batch))
            value = kind.value(task.val.target, val)
            if best is None or value > best.val_value:
                test = kind.predict(embed(state, task.test, config.batch))
                best = Fitted({"lr": lr, "epoch": epoch}, value, val, test)
    assert best is not None
    return best


def _with_head(encoder: Encoder, outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.dim, outputs)
    return nn.Sequential(encoder, head.to(next(encoder.parameters()).device))


def _epochs(
    model: nn.Sequential, train: Labelled, kind: Kind, lr: float, config: TransferConfig
) -> Iterator[nn.Sequential]:
    """Trains in place and yields the model after every epoch."""
    tune = config.finetune
    device = next(model.parameters()).device
    batch = min(tune.batch, len(train))
    steps = tune.epochs * (len(train) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=tune.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    rng = np.random.default_rng([config.seed, 0xF1])
    for _ in range(tune.epochs):
        model.train()
        order = rng.permutation(len(train))
        for start in range(0, len(train) - batch + 1, batch):
            part = train.take(order[start : start + batch])
            loss = kind.loss(model(signals(part, device)), torch.from_numpy(part.target).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), tune.clip)
            optimizer.step()
            schedule.step()
        yield model
