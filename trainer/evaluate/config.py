"""The keys of a transfer."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.evaluate.task import TaskConfig

MODES = ("probe", "finetune", "scratch")


RANGES = {
    "fraction": "> 0 and <= 1",
    "seed": ">= 0 and < 1e18",
    "batch": ">= 1",
    "bootstrap": ">= 0",
    "probe.C": "> 0",
    "finetune.lr": "> 0",
    "finetune.epochs": ">= 1",
    "finetune.batch": ">= 1",
    "finetune.weight_decay": ">= 0",
    "finetune.clip": "> 0",
}


@dataclass
class ProbeConfig:
    """Logistic regression on frozen features: the inverse regularisations `C` that val chooses from."""

    C: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])


@dataclass
class FinetuneConfig:
    """AdamW with a cosine schedule; val chooses the learning rate and the epoch."""

    lr: list[float] = field(default_factory=lambda: [3e-4, 1e-3])
    epochs: int = 20
    batch: int = 64
    weight_decay: float = 1e-2
    clip: float = 1.0


@dataclass
class TransferConfig(TaskConfig):
    """How to test an encoder on a task.

    `encoder` is a directory, a hub id, or `random` (the architecture of `like`, weights from `seed`). `fraction` of the
    train labels, per class and at least 2. `bootstrap` resamples of the test patients.
    """

    encoder: str = ""
    like: str = ""
    output: str = ""
    mode: str = "probe"
    fraction: float = 1.0
    seed: int = 0
    batch: int = 256
    device: str = "auto"
    bootstrap: int = 2000
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
