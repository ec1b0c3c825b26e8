"""The keys of a pre-training run, with their meaning and defaults; `configs/pretrain/*.yaml` say how they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trainer.game.masking import GameConfig
from trainer.game.temperature import LEAST, MOST
from trainer.observe.wandb_mirror import WandbConfig
from umbra.config import check_fields, setting
from umbra.errors import UserError


@dataclass
class DataConfig:
    """The data set, how a process reads it, and in which order."""

    path: str = ""
    """The folder of the sharded data set, or its URL (`https://`, `s3://`, `gs://`, ...), or `pipe:COMMAND`."""
    lanes: int = setting(0, ">= 0")
    """Equal stretches that the order of an epoch is cut into; the world size must divide them. 0 takes the largest
    divisor of the contrast batch up to 64."""
    block_shards: int = setting(8, ">= 1")
    """Shards that are shuffled together. Best if `lanes * block_shards` of them fit into the memory of the machines."""
    partner: str = setting("same", choices=("same", "patient"))
    """Of a pair, the second view is of the `same` window, or of another one of the `patient` (drawn again each
    epoch; the same one where there is no other)."""
    threads: int = setting(2, ">= 1")
    """Threads of each process that copy samples; as many read shards ahead."""
    ahead: int = setting(2, ">= 1")
    """Batches that each process keeps ready."""
    exclude: list[str] = field(default_factory=list)
    """Names of training shards that are left out from the next epoch on, which begins where the run goes on."""
    cache: str = ""
    """With a remote `path`: a folder on a disk of each machine, into which shards are fetched ahead by `threads`
    (at least 4) threads."""
    cache_gb: float = setting(0.0, ">= 0")
    """The most that `cache` takes, in GB (0: twice the least that works)."""
    audit: bool = False
    """Whether to write which samples each step saw, for `python -m trainer.data.audit RUN`."""


@dataclass
class BatchConfig:
    """How many ECGs meet where."""

    global_: int = setting(256, ">= 2")
    """ECGs per optimiser step, over all processes."""
    contrast: int = setting(0, ">= 0")
    """ECGs whose embeddings meet in one loss (0: the global batch). Fewer mean accumulation over several losses."""
    device: int = setting(0, ">= 0")
    """ECGs of one pass through the networks (0: a process's whole share). Fewer give the same gradient with the
    activations of that many ECGs in memory, for one more forward pass; not with batch norm."""


@dataclass
class ModelConfig:
    """The encoder."""

    name: str = "resnet18"
    """The encoder's architecture; `python -m umbra.encoders` lists them."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that architecture, as `width` or `norm`."""


@dataclass
class ProjectorConfig:
    """The projector, between the encoder and the loss."""

    hidden: int = setting(2048, ">= 1")
    """Width of the hidden layer (the paper's)."""
    out: int = setting(128, ">= 1")
    """Dimensions of the embedding that the loss compares (the paper's)."""


@dataclass
class MaskerConfig:
    """The masker."""

    name: str = "unet"
    """`unet`, lean, on cells of `game.resolution_s`; or `paper`, the published one on every sample."""
    width: int = setting(32, ">= 1")
    """Channels at its finest level (`paper`: 512 are the published 152 M parameters that are used)."""
    depth: int = setting(2, ">= 0 and <= 8")
    """Levels of `unet` under its finest one; that of `paper` is fixed."""
    kernel: int = setting(5, ">= 1")
    """Samples or cells of a convolution; odd, so that a mask keeps its length."""


@dataclass
class PlayerConfig:
    """One player's AdamW."""

    lr: float = setting(1e-3, ">= 0")
    """Peak learning rate."""
    weight_decay: float = setting(1e-4, ">= 0")
    """Decoupled weight decay."""
    clip: float = setting(1.0, ">= 0")
    """Largest gradient norm (0: no clipping)."""


@dataclass
class OptimConfig:
    """The optimisers of both players and their common schedule."""

    encoder: PlayerConfig = field(default_factory=PlayerConfig)
    """The AdamW of encoder and projector."""
    masker: PlayerConfig = field(default_factory=lambda: PlayerConfig(lr=1e-4))
    """The AdamW of the masker, by default at a tenth of the encoder's rate; a hundredth did no better on validation
    folds (docs/results/game-dials.md)."""
    warmup: float = setting(0.05, ">= 0 and <= 1")
    """Share of the steps over which the rates rise linearly; then they fall to 0 along a cosine."""


@dataclass
class ViewsConfig:
    """Views of either side of a pair, e.g. `[{name: vcg}, {name: time_mask}]`."""

    first: list[Any] = field(default_factory=list)
    """Views of the first side."""
    second: list[Any] = field(default_factory=list)
    """Views of the second side; the masker's mask comes after them."""


@dataclass
class LogConfig:
    """When a run says something."""

    every: int = setting(10, ">= 1")
    """Steps between log lines."""
    heldout_every: int = setting(50, ">= 0")
    """Steps between losses on held-out patients (0: never)."""
    figure_every: int = setting(500, ">= 0")
    """Steps between figures of masks (0: never)."""


@dataclass
class CheckpointConfig:
    """When a run is saved."""

    every: int = setting(200, ">= 0")
    """Steps between checkpoints (0: only the last)."""
    keep: int = setting(2, ">= 1")
    """How many of the newest checkpoints stay."""


@dataclass
class PretrainConfig:
    """A pre-training run."""

    method: str = ""
    """What the run is called in results; by default the name of its YAML."""
    run: str = "runs/pretrain"
    """The run directory."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of weights, order, views and masks."""
    epochs: float = setting(100.0, ">= 0")
    """Passes over the training ECGs, also parts of one."""
    steps: int = setting(0, ">= 0")
    """Optimiser steps (0: as many as `epochs` make)."""
    temperature: float = setting(0.1, "> 0")
    """Temperature of NT-Xent (the paper's)."""
    learn_temperature: bool = False
    """Whether the temperature is learned from the one given, between 0.01 and 1."""
    scaling: str = setting("fixed", choices=("fixed", "record"))
    """`fixed`: by the training data's mean and deviation per lead; `record`: by each record's own."""
    precision: str = setting("auto", choices=("auto", "fp32", "bf16"))
    """`auto`: bf16 autocast on GPUs that have it, fp32 elsewhere."""
    zero: int = setting(0, choices=(0, 1, 2, 3))
    """ZeRO stage of DeepSpeed."""
    compile: bool = False
    """Whether the networks are compiled by `torch.compile`, which needs a C++ compiler and a minute or several at
    each start; not with ZeRO 3. Off because it does not pay on CPUs; on GPUs it was not tried."""
    resume: str = setting("auto", choices=("auto", "never"))
    """`auto`: go on from the newest committed checkpoint; `never`: refuse a directory that has one."""
    max_minutes: float = setting(0.0, ">= 0")
    """Stop with a checkpoint after so many minutes (0: no limit)."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set and how it is read."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Sizes of a step, a loss and a pass."""
    encoder: ModelConfig = field(default_factory=ModelConfig)
    """The encoder that is trained."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The projector, between the encoder and the loss."""
    masker: MaskerConfig = field(default_factory=MaskerConfig)
    """The masker's network."""
    game: GameConfig = field(default_factory=GameConfig)
    """The dials of the game between encoder and masker."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views of either side of a pair."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimisers and their schedule."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often a run is logged."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """How often a run is saved."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """The mirror of the log at Weights & Biases."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work, before anything is built."""
        self.game.check()
        if not self.data.path:
            raise UserError("data.path is not set: give the folder of a sharded data set, data.path=DIR")
        check_fields(self)
        if self.optim.encoder.lr == 0:
            raise UserError("optim.encoder.lr=0.0 must be > 0")
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
                raise UserError("masker.depth has no effect with masker.name=paper: leave it out")
            if self.game.family != "spectral" and self.game.resolution_s != GameConfig.resolution_s:
                raise UserError("game.resolution_s has no effect with masker.name=paper: leave it out")
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
