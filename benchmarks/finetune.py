"""How fast is fine-tuning? `python -m benchmarks.finetune [key=value]`.

A whole fine-tuning, from the shards to the predictions of the test records, as it is and as it was up to commit
e61346f: each batch read and converted on the host before its step, one learning rate after the other, the test records
at each better epoch. Both train all epochs of all learning rates on the same records of noise, in rounds, the sides in
turn; medians. Samples are the train records of all steps. `parts` says where the seconds of the older one go: `network`
is what both have to compute. `ratio` is of samples per second, `ratio_cpu` of samples per second of CPU time, which
other work on the machine matters less to.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.stream import StreamConfig, write
from trainer import threads
from trainer.data.shards import Shards
from trainer.evaluate.config import FinetuneConfig, TransferConfig
from trainer.evaluate.embed import device_of, parts_of
from trainer.evaluate.finetune import finetune
from trainer.evaluate.kinds import Classes
from trainer.evaluate.task import Labelled, Task
from umbra.config import check_fields, command, load, setting
from umbra.encoders.encoder import Encoder, EncoderConfig
from umbra.hub import initialise

CLASSES = 5


@dataclass
class BenchConfig:
    """Records of `samples` in `shards`, of which `train`, `val` and `test` are used; `rounds` of both sides."""

    name: str = "resnet18"
    """The encoder."""
    args: dict[str, Any] = field(default_factory=lambda: {"width": 12, "groups": 4, "embedding": 128})
    """Its arguments."""
    samples: int = setting(1000, ">= 1")
    shards: int = setting(8, ">= 1")
    train: int = setting(512, ">= 2")
    val: int = setting(256, ">= 2")
    test: int = setting(256, ">= 2")
    epochs: int = setting(3, ">= 1")
    batch: int = setting(64, ">= 1")
    lr: list[float] = setting([3e-4, 1e-3], "> 0")
    rounds: int = setting(5, ">= 1")
    device: str = "auto"
    folder: str = ""
    """Where the shards are written temporarily."""


def main(words: list[str]) -> None:
    config = load(BenchConfig, None, words)
    check_fields(config)
    threads.settle()
    with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
        task = make_task(config, Path(folder) / "data")
        encoder = make_encoder(config, task.train.shards)
        transfer = TransferConfig(mode="finetune", encoder="DIR")
        transfer.finetune = FinetuneConfig(lr=config.lr, epochs=config.epochs, batch=config.batch, patience=0)
        everything, parts = np.arange(len(task.train)), Counter[str]()
        sides: dict[str, Callable[[], object]] = {
            "before": lambda: before(task, encoder, transfer, parts),
            "now": lambda: quiet(lambda: finetune(task, encoder, everything, transfer)),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        cpu: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(config.rounds):
            for side in (*sides,) if number % 2 else (*reversed(sides),):
                began, busy = time.perf_counter(), time.process_time()
                sides[side]()
                seconds[side].append(time.perf_counter() - began)
                cpu[side].append(time.process_time() - busy)
    trained = len(config.lr) * config.epochs * (config.train // config.batch) * config.batch
    speed, of_cpu = ({side: trained / median(all_[side]) for side in sides} for all_ in (seconds, cpu))
    for side in sides:
        print(f"{side:<8}{speed[side]:>10,.0f} samples/s{of_cpu[side]:>10,.0f} per second of CPU time")
    whole = sum(seconds["before"])
    shares = {part: round(value / whole, 3) for part, value in parts.items()}
    print("before:", ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items()))
    ratios = {"ratio": speed["now"] / speed["before"], "ratio_cpu": of_cpu["now"] / of_cpu["before"]}
    about = {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1), "device": config.device}
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()} | {"parts": shares} | about))


def make_task(config: BenchConfig, root: Path) -> Task:
    """A task of noise, whose splits are parts of one shuffled data set."""
    wanted = config.train + config.val + config.test
    geometry = StreamConfig(shards=config.shards, mb=1.1 * wanted * (24 * config.samples + 2048) / config.shards / 1e6)
    shards, rng = write(geometry, root, config.samples), np.random.default_rng(0)
    index = rng.permutation(shards.count)[:wanted]
    target = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, wanted)]
    ends = np.cumsum([config.train, config.val])
    train, val, test = (Labelled(shards, i, t, i) for i, t in zip(np.split(index, ends), np.split(target, ends)))
    return Task("noise", "classes", [str(k) for k in range(CLASSES)], train, val, test, [])


def make_encoder(config: BenchConfig, shards: Shards) -> Encoder:
    manifest, many = shards.manifest, len(shards.manifest.leads)
    scaling: Any = {"mode": "fixed", "mean_mv": [0.0] * many, "std_mv": [1.0] * many}
    architecture: Any = {"name": config.name, "args": config.args}
    about = EncoderConfig(architecture, 0, manifest.rate, list(manifest.leads), manifest.samples, scaling)
    encoder = initialise(about, 0)
    encoder.config = EncoderConfig(architecture, encoder.dim, manifest.rate, about.leads, about.samples, scaling)
    return encoder.to(device_of(config.device))


def encoder_device(encoder: nn.Module) -> torch.device:
    return next(encoder.parameters()).device


def quiet(work: Callable[[], object]) -> None:
    """Without the lines of progress."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        work()


# ---- up to commit e61346f ----


def before(task: Task, encoder: Encoder, config: TransferConfig, parts: Counter[str]) -> float:
    """The best value on val; counts in `parts` the seconds that its parts take."""
    best, kind = -1.0, Classes()
    for lr in config.finetune.lr:
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(encoder.dim, CLASSES).to(encoder_device(encoder)))
        for _ in _epochs(model, task.train, lr, config.finetune, parts):
            with timed(parts, "val"):
                value = kind.value(task.val.target, kind.predict(_embed(model, task.val, config.batch)))
            if value > best:
                best = value
                with timed(parts, "test"):
                    kind.predict(_embed(model, task.test, config.batch))
    return best


def _epochs(
    model: nn.Sequential, train: Labelled, lr: float, tune: FinetuneConfig, parts: Counter[str]
) -> Iterator[None]:
    device, kind = encoder_device(model), Classes()
    batch = min(tune.batch, len(train))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=tune.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=tune.epochs * (len(train) // batch))
    rng = np.random.default_rng(0)
    for _ in range(tune.epochs):
        model.train()
        order = rng.permutation(len(train))
        for start in range(0, len(train) - batch + 1, batch):
            with timed(parts, "read"):
                part = train.take(order[start : start + batch])
                x, target = _signals(part, device), torch.from_numpy(part.target).to(device)
            with timed(parts, "network"):
                loss = kind.loss(model(x), target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with timed(parts, "update"):
                nn.utils.clip_grad_norm_(model.parameters(), tune.clip)
                optimizer.step()
                schedule.step()
        yield


def _embed(model: nn.Module, data: Labelled, batch: int) -> np.ndarray:
    model.eval()
    device = encoder_device(model)
    with torch.inference_mode():
        return np.concatenate([model(_signals(part, device)).float().cpu().numpy() for part in parts_of(data, batch)])


def _signals(data: Labelled, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(data.shards.read_mv(data.index)).to(device)


@contextlib.contextmanager
def timed(parts: Counter[str], part: str) -> Iterator[None]:
    """Counts the seconds of the block; on a GPU those of the host, whose calls return before the work is done."""
    began = time.perf_counter()
    yield
    parts[part] += time.perf_counter() - began  # type: ignore[assignment]


if __name__ == "__main__":
    command(main)
