"""The keys of a pre-training run, with their meaning and defaults; `configs/pretrain/*.yaml` say how they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trainer.game.masking import GameConfig
from trainer.game.temperature import LEAST, MOST
from trainer.observe.wandb_mirror import MODES, WandbConfig
from umbra.config import check_ranges
from umbra.errors import UserError


@dataclass
class DataConfig:
    """`path`: the sharded data set. `lanes`: 0 takes the largest divisor of the contrast batch up to 64.

    `block_shards`: shards that are shuffled together; best if `lanes * block_shards` of them fit into the memory of the
    machines. `partner`: of a pair, the second view is of the `same` window, or of another one of the `patient` (drawn
    anew each epoch; the same one where there is no other). Of each process, `threads` copy samples (and as many read
    shards ahead), `ahead` batches are kept ready.
    `exclude`: names of training shards that are left out from the next epoch on, which begins where the run goes on.
    `path` may be a URL (`https://`, `s3://`, `gs://`, ...) or `pipe:COMMAND`: then the shards are fetched ahead, by
    `threads` (at least 4) threads a machine, into the folder `cache` on a disk of each machine, where they take at most
    `cache_gb` GB (0: twice the least that works). `audit`: write which samples each step saw, for
    `python -m trainer.data.audit RUN`.
    """

    path: str = ""
    lanes: int = 0
    block_shards: int = 8
    partner: str = "same"
    threads: int = 2
    ahead: int = 2
    exclude: list[str] = field(default_factory=list)
    cache: str = ""
    cache_gb: float = 0.0
    audit: bool = False


@dataclass
class BatchConfig:
    """`global`: ECGs per optimiser step. `contrast`: ECGs whose embeddings meet in one loss (0: the global batch).

    `device`: ECGs of one pass through the networks (0: a process's whole share). Fewer give the same gradient with the
    activations of that many ECGs in memory, for one more forward pass; not with batch norm.
    """

    global_: int = 256
    contrast: int = 0
    device: int = 0


@dataclass
class ModelConfig:
    name: str = "resnet18"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class ProjectorConfig:
    hidden: int = 2048
    out: int = 128


@dataclass
class MaskerConfig:
    """`name`: `unet`, lean, `width` channels at its finest level of cells of `game.resolution_s`, `depth` levels under
    it; or `paper`, the published one on every sample (`width` 512 there, 152 M parameters; its depth is fixed).
    """

    name: str = "unet"
    width: int = 32
    depth: int = 2
    kernel: int = 5


@dataclass
class PlayerConfig:
    """One player's AdamW: peak `lr`, `weight_decay`, `clip` (largest gradient norm; 0 = no clipping)."""

    lr: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 1.0


@dataclass
class OptimConfig:
    """`warmup`: share of the steps over which the rates rise; then a cosine to 0."""

    encoder: PlayerConfig = field(default_factory=PlayerConfig)
    masker: PlayerConfig = field(default_factory=lambda: PlayerConfig(lr=1e-4))
    warmup: float = 0.05


@dataclass
class ViewsConfig:
    """Views of either side of a pair, e.g. `[{name: vcg}, {name: time_mask}]`; the masker's mask comes after them."""

    first: list[Any] = field(default_factory=list)
    second: list[Any] = field(default_factory=list)


@dataclass
class LogConfig:
    """Steps between log lines, held-out losses and mask figures (0: never)."""

    every: int = 10
    heldout_every: int = 50
    figure_every: int = 500


@dataclass
class CheckpointConfig:
    """`every`: steps between checkpoints (0: only the last). `keep`: how many of them stay."""

    every: int = 200
    keep: int = 2


RANGES = {
    "seed": ">= 0 and < 1e18",
    "epochs": ">= 0",
    "steps": ">= 0",
    "temperature": "> 0",
    "max_minutes": ">= 0",
    "data.lanes": ">= 0",
    "data.block_shards": ">= 1",
    "data.threads": ">= 1",
    "data.ahead": ">= 1",
    "data.cache_gb": ">= 0",
    "batch.global": ">= 2",
    "batch.contrast": ">= 0",
    "batch.device": ">= 0",
    "projector.hidden": ">= 1",
    "projector.out": ">= 1",
    "masker.width": ">= 1",
    "masker.depth": ">= 0 and <= 8",
    "masker.kernel": ">= 1",
    "optim.encoder.lr": "> 0",
    "optim.encoder.weight_decay": ">= 0",
    "optim.encoder.clip": ">= 0",
    "optim.masker.lr": ">= 0",
    "optim.masker.weight_decay": ">= 0",
    "optim.masker.clip": ">= 0",
    "optim.warmup": ">= 0 and <= 1",
    "log.every": ">= 1",
    "log.heldout_every": ">= 0",
    "log.figure_every": ">= 0",
    "checkpoint.every": ">= 0",
    "checkpoint.keep": ">= 1",
}  # the dials of the game have their ranges in `trainer/game/masking.py`


@dataclass
class PretrainConfig:
    """`run`: the run directory. `steps`: optimiser steps (0: `epochs`). `learn_temperature`: the temperature is learned
    from the one given, between 0.01 and 1. `scaling`: fixed (the training data's mean and deviation per lead) or
    record. `precision`: auto (bf16 on GPUs that have it), fp32 or bf16. `zero`: ZeRO stage. `compile`: the networks by
    `torch.compile`, which needs a C++ compiler and a minute or several at each start; not with ZeRO 3.
    `resume`: auto (go on from the newest committed checkpoint) or never. `max_minutes`: stop with a checkpoint then.
    """

    method: str = ""
    run: str = "runs/pretrain"
    seed: int = 0
    epochs: float = 100.0
    steps: int = 0
    temperature: float = 0.1
    learn_temperature: bool = False
    scaling: str = "fixed"
    precision: str = "auto"
    zero: int = 0
    compile: bool = False
    resume: str = "auto"
    max_minutes: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    encoder: ModelConfig = field(default_factory=ModelConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    masker: MaskerConfig = field(default_factory=MaskerConfig)
    game: GameConfig = field(default_factory=GameConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work, before anything is built."""
        self.game.check()
        if not self.data.path:
            raise UserError("data.path is not set: give the folder of a sharded data set, data.path=DIR")
        for key, value, known in (
            ("scaling", self.scaling, ("fixed", "record")),
            ("data.partner", self.data.partner, ("same", "patient")),
            ("precision", self.precision, ("auto", "fp32", "bf16")),
            ("resume", self.resume, ("auto", "never")),
            ("wandb.mode", self.wandb.mode, MODES),
            ("zero", self.zero, (0, 1, 2, 3)),
        ):
            if value not in known:
                raise UserError(f"{key}={value} is unknown; use {', '.join(map(str, known))}")
        check_ranges(self, RANGES)
        if self.batch.global_ % self.contrast:
            raise UserError(f"batch.contrast={self.batch.contrast} does not divide batch.global={self.batch.global_}")
        if self.contrast < 2:
            raise UserError("batch.contrast=1 leaves no other ECG to contrast with: use 2 or more")
        if self.learn_temperature and not LEAST <= self.temperature <= MOST:
            raise UserError(f"temperature={self.temperature:g}: a learned one starts between {LEAST:g} and {MOST:g}")
        if self.compile and self.zero == 3:
            raise UserError("compile=true does not go with zero=3: use zero of 0, 1 or 2, or compile=false")
        if self.masker.kernel % 2 == 0:
            raise UserError(f"masker.kernel={self.masker.kernel} must be odd, so that a mask keeps its length")
        if self.masker.name == "paper":
            if self.masker.depth != MaskerConfig.depth:
                raise UserError("masker.depth weighs nothing with masker.name=paper: leave it out")
            if self.game.family != "spectral" and self.game.resolution_s != GameConfig.resolution_s:
                raise UserError("game.resolution_s weighs nothing with masker.name=paper: leave it out")
        if self.steps == 0 and self.epochs == 0:
            raise UserError("steps and epochs are both 0: nothing to train")

    @property
    def contrast(self) -> int:
        return self.batch.contrast or self.batch.global_

    @property
    def accumulation(self) -> int:
        return self.batch.global_ // self.contrast

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, math.floor(self.epochs * steps_per_epoch))


def learning_rate(peak: float, step: int, total: int, warmup: float) -> float:
    """Linear warm-up over `warmup * total` steps, then a cosine that would reach 0 at step `total`."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def player_rate(cfg: PretrainConfig, name: str, step: int, total: int) -> float:
    """The learning rate of `encoder` or `masker` at a step; the masker's runs over the steps after `game.warmup`."""
    idle = math.ceil(cfg.game.warmup * total) if name == "masker" else 0
    return learning_rate(getattr(cfg.optim, name).lr, max(0, step - idle), total - idle, cfg.optim.warmup)
