"""The config keys of a pre-training run, with meanings and defaults; `configs/pretrain/*.yaml` set them per method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trainer.data.config import DataConfig
from trainer.game.masking import GameConfig
from trainer.game.temperature import LEAST, MOST
from trainer.observe.wandb_mirror import WandbConfig
from trainer.views.pairing import PairConfig
from umbra.config import check_fields, setting
from umbra.errors import UserError


@dataclass
class BatchConfig:
    """Batch sizes."""

    global_: int = setting(256, ">= 2")
    """ECGs per optimiser step, over all processes."""
    contrast: int = setting(0, ">= 0")
    """ECGs that are contrasted in one loss (0: the global batch). A smaller number accumulates the gradients of several
    losses per step."""
    device: int = setting(0, ">= 0")
    """ECGs per forward pass through the networks (0: a process's whole share). A smaller number gives the same gradient
    with the activations of only that many ECGs in memory, at the cost of one more forward pass; not with batch norm."""


@dataclass
class ModelConfig:
    """The encoder."""

    name: str = "resnet18"
    """The encoder's architecture; `python -m umbra.encoders` lists them."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that architecture, such as `width` or `norm`."""


@dataclass
class ProjectorConfig:
    """The projection head between the encoder and the loss."""

    hidden: int = setting(2048, ">= 1")
    """Width of the hidden layer (default: the paper's)."""
    out: int = setting(128, ">= 1")
    """Dimension of the embedding that the loss compares (default: the paper's)."""


@dataclass
class MaskerConfig:
    """The masker network."""

    name: str = "unet"
    """`unet`: a small network with one output per cell of `game.resolution_s`; `paper`: the published network, with one
    output per sample."""
    width: int = setting(32, ">= 1")
    """Channels at the finest level (`paper`: 512 gives the 152 M published parameters that are in use)."""
    depth: int = setting(2, ">= 0 and <= 8")
    """Levels of `unet` below the finest one; the depth of `paper` is fixed."""
    kernel: int = setting(5, ">= 1 and <= 999")
    """Kernel size of the convolutions, in samples or cells; odd, so that a mask keeps its length."""


@dataclass
class PlayerConfig:
    """AdamW settings of one player (encoder or masker)."""

    lr: float = setting(1e-3, ">= 0")
    """Peak learning rate."""
    weight_decay: float = setting(1e-4, ">= 0")
    """Decoupled weight decay."""
    clip: float = setting(1.0, ">= 0")
    """Maximum gradient norm (0: no clipping)."""


@dataclass
class OptimConfig:
    """The optimisers of both players and their shared schedule."""

    encoder: PlayerConfig = field(default_factory=PlayerConfig)
    """AdamW of the encoder and projector."""
    masker: PlayerConfig = field(default_factory=lambda: PlayerConfig(lr=1e-4))
    """AdamW of the masker, by default with a tenth of the encoder's learning rate; a hundredth was no better on the
    validation folds (docs/results/game-dials.md)."""
    warmup: float = setting(0.05, ">= 0 and <= 1")
    """Fraction of the steps with a linear warm-up of the learning rates."""
    schedule: str = setting("cosine", choices=("cosine", "wsd"))
    """After the warm-up: `cosine` decays to 0 over all remaining steps; `wsd` (warm-up, stable, decay) keeps the rates
    constant until `decay`, so that a run can be prolonged before its decay without a jump."""
    decay: float = setting(0.2, "> 0 and <= 1")
    """Fraction of the steps, the last ones, with a linear decay to 0; only with `schedule=wsd`."""


@dataclass
class ViewsConfig:
    """Views (augmentations) of the two sides of a pair, e.g. `[{name: vcg}, {name: time_mask}]`."""

    first: list[Any] = field(default_factory=list)
    """Views of the first side."""
    second: list[Any] = field(default_factory=list)
    """Views of the second side; the masker's mask is applied after them."""
    both: list[Any] = field(default_factory=list)
    """Views of both sides, after those of each, with other random numbers on each side: a method's `first` and `second`
    stay as they are."""
    candidates: int = setting(1, ">= 1 and <= 64")
    """Random pairs of views per ECG, of which that is trained on whose embeddings have the least cosine (hard views:
    Ferreira et al. 2024); each costs a forward pass. Only with `game.enabled=false`."""


@dataclass
class LogConfig:
    """How often a run logs."""

    every: int = setting(10, ">= 1")
    """Steps between log lines."""
    heldout_every: int = setting(50, ">= 0")
    """Steps between evaluations of the loss on held-out patients (0: never)."""
    probe: list[str] = field(default_factory=list)
    """Tasks of configs/transfer, such as `[rhythm]`, on which features of held-out patients are probed with each
    evaluation of `heldout_every`; only looked at, the run is the same without."""
    probe_ecgs: int = setting(512, ">= 8 and <= 100000")
    """The first ECGs of the held-out patients that are probed (at most)."""
    figure_every: int = setting(500, ">= 0")
    """Steps between mask figures; the first log line and the last have one as well (0: never)."""


@dataclass
class CheckpointConfig:
    """How often a run is saved, and what is kept."""

    every: int = setting(200, ">= 0")
    """Steps between checkpoints (0: only at the end)."""
    keep: int = setting(2, ">= 1")
    """Number of checkpoints to keep, the newest ones."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written: it waits only for a copy of weights and optimiser state
    in host memory, which takes as much memory again. The last checkpoint of a run is always waited for."""


@dataclass
class HangConfig:
    """When a run that stands still is ended, with exit code 75 and a line that names the processes that hang."""

    minutes: float = setting(10.0, "> 0 and <= 10000")
    """Minutes without progress after which every process ends."""
    start_minutes: float = setting(30.0, "> 0 and <= 10000")
    """The same until the first step is done and while remote shards are on their way (at least `minutes`)."""


@dataclass
class PretrainConfig:
    """A pre-training run."""

    method: str = ""
    """Name of the method in results (empty: the name of the YAML)."""
    init: str = ""
    """An encoder directory or hub id to go on from: its weights and its scaling, with a new projector and masker. It
    must have the architecture, leads and rate of the run. Empty: random weights from `seed`."""
    run: str = "runs/pretrain"
    """The run directory."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of weights, sample order, views and masks."""
    epochs: float = setting(100.0, ">= 0 and <= 1000000")
    """Passes over the training ECGs; may be fractional."""
    steps: int = setting(0, ">= 0 and <= 1000000000")
    """Optimiser steps (0: derived from `epochs`)."""
    temperature: float = setting(0.1, "> 0")
    """Temperature of NT-Xent (default: the paper's)."""
    learn_temperature: bool = False
    """Whether to learn the temperature, starting from `temperature`, between 0.01 and 1."""
    scaling: str = setting("fixed", choices=("fixed", "record"))
    """Standardisation per lead: `fixed` by the mean and standard deviation of the training data, `record` by those of
    each record."""
    precision: str = setting("auto", choices=("auto", "fp32", "bf16"))
    """`auto`: bf16 autocast on GPUs that support it, fp32 elsewhere."""
    zero: int = setting(0, choices=(0, 1, 2, 3))
    """ZeRO stage of DeepSpeed."""
    compile: str = setting("auto", choices=("auto", "true", "false"))
    """Whether to compile the networks with `torch.compile`, which needs a C++ compiler and takes a minute or more at
    the first start: `auto` on GPUs only, not with ZeRO 3, nor with batch norm on several GPUs."""
    resume: str = setting("auto", choices=("auto", "never"))
    """`auto`: resume from the newest committed checkpoint; `never`: refuse a run directory that has one."""
    max_minutes: float = setting(0.0, ">= 0 and <= 525600")
    """Stop with a checkpoint after this many minutes (0: no limit)."""
    max_skipped: int = setting(3, ">= 0 and <= 1000")
    """Steps in a row that are skipped because a loss is not finite; one more ends the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set and how it is read."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Batch sizes of a step, a loss and a forward pass."""
    encoder: ModelConfig = field(default_factory=ModelConfig)
    """The encoder that is trained."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The projection head between the encoder and the loss."""
    masker: MaskerConfig = field(default_factory=MaskerConfig)
    """The masker's network."""
    game: GameConfig = field(default_factory=GameConfig)
    """The game between encoder and masker."""
    pair: PairConfig = field(default_factory=PairConfig)
    """Where the two views of a pair come from."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views (augmentations) of the two sides of a pair."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimisers and their schedule."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often a run is logged."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """How often a run is saved."""
    hang: HangConfig = field(default_factory=HangConfig)
    """When a run that stands still is ended."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """The copy of the log at Weights & Biases."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work, before anything is built."""
        self.game.check()
        self.pair.check()
        if not self.data.path:
            raise UserError("data.path is not set: give the folder of a sharded data set, data.path=DIR")
        check_fields(self)
        self.data.check()
        if not self.run:
            raise UserError("run is empty: give the run directory, run=DIR")
        if self.log.probe and not self.log.heldout_every:
            raise UserError("log.probe has no effect with log.heldout_every=0: leave one of them out")
        if self.data.partner == "patient" and self.pair.kind not in ("same", "patient"):
            raise UserError(f"data.partner=patient is pair=patient, but pair={self.pair.kind}: give pair alone")
        self._check_candidates()
        if self.optim.encoder.lr == 0:
            raise UserError("optim.encoder.lr=0.0 must be > 0")
        if self.batch.global_ % self.contrast:
            raise UserError(f"batch.contrast={self.batch.contrast} does not divide batch.global={self.batch.global_}")
        if self.contrast < 2:
            raise UserError("batch.contrast=1 leaves no other ECG to contrast with: use 2 or more")
        if self.learn_temperature and not LEAST <= self.temperature <= MOST:
            raise UserError(
                f"temperature={self.temperature:g}: a learned temperature must start between {LEAST:g} and {MOST:g}"
            )
        if self.compile == "true" and self.zero == 3:
            raise UserError("compile=true does not work with zero=3: use zero=0, 1 or 2, or compile=false")
        if self.masker.kernel % 2 == 0:
            raise UserError(f"masker.kernel={self.masker.kernel} must be odd, so that a mask keeps its length")
        if self.masker.name == "paper":
            if self.masker.depth != MaskerConfig.depth:
                raise UserError("masker.depth has no effect with masker.name=paper: leave it out")
            if self.game.family != "spectral" and self.game.resolution_s != GameConfig.resolution_s:
                raise UserError("game.resolution_s has no effect with masker.name=paper: leave it out")
        if self.optim.schedule == "cosine" and self.optim.decay != OptimConfig.decay:
            raise UserError("optim.decay has no effect with optim.schedule=cosine: use schedule=wsd or leave it out")
        if self.optim.schedule == "wsd" and self.optim.warmup + self.optim.decay > 1:
            raise UserError(
                f"optim.warmup={self.optim.warmup:g} and optim.decay={self.optim.decay:g} are fractions of the steps: "
                "together at most 1"
            )
        if self.steps == 0 and self.epochs == 0:
            raise UserError("steps and epochs are both 0: nothing to train")

    def _check_candidates(self) -> None:
        """Raises `UserError` for candidates of which none could be harder than another."""
        views, said = self.views, f"views.candidates={self.views.candidates}"
        if views.candidates == 1:
            return
        if self.game.enabled:
            raise UserError(
                f"{said}: a masker makes views hard by itself; use game.enabled=false, or views.candidates=1"
            )
        if self.pair.kind != "crops" and not (views.first or views.second or views.both):
            raise UserError(f"{said}: all would be the same, for nothing is random: give views.both or pair=crops")

    @property
    def of_patients(self) -> bool:
        """Whether the second view is of another window of the patient."""
        return "patient" in (self.pair.kind, self.data.partner)

    @property
    def contrast(self) -> int:
        return self.batch.contrast or self.batch.global_

    @property
    def accumulation(self) -> int:
        return self.batch.global_ // self.contrast

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, math.floor(self.epochs * steps_per_epoch))
