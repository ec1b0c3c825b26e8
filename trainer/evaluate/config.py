"""The config keys of an evaluation (`python -m trainer.transfer`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.evaluate.task import TaskConfig
from umbra.config import check_fields, setting
from umbra.errors import UserError
from umbra.layers import TextOrTexts


@dataclass
class ProbeConfig:
    """A linear head on frozen features."""

    head: str = setting("logistic", choices=("logistic", "ridge"))
    """`logistic`: logistic regression; `ridge`: ridge regression in closed form, its scores made probabilities on
    the val split. `kind: number` always takes ridge regression."""
    C: list[float] = setting([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "> 0")
    """Candidate inverse regularisation strengths of logistic regression; the best on the val split is used."""
    penalty: list[float] = setting([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0], "> 0")
    """Candidate penalties of ridge regression on the mean squared error; the best on the val split is used."""


@dataclass
class FinetuneConfig:
    """AdamW with a warm-up and a cosine schedule (docs/fine-tuning.md)."""

    lr: list[float] = setting([3e-4, 1e-3], "> 0")
    """Candidate learning rates of the head; the best on the val split is used."""
    layer_decay: float = setting(0.9, "> 0 and <= 1")
    """With `mode: finetune`, each layer of the encoder learns at this times the rate of the layer above it."""
    epochs: int = setting(20, ">= 1 and <= 100000")
    """Passes over the train records at most; the best epoch on the val split is used."""
    patience: int = setting(10, ">= 0 and <= 100000")
    """Stop after this many epochs without a better value on the val split (0: train all epochs)."""
    batch: int = setting(64, ">= 1")
    """Records per step (all of them where there are fewer)."""
    warmup: float = setting(0.1, ">= 0 and <= 1")
    """Fraction of the steps with a linear warm-up of the learning rates; then a cosine decays them to 0."""
    weight_decay: float = setting(1e-2, ">= 0")
    """Decoupled weight decay, not of biases and norms."""
    clip: float = setting(1.0, "> 0")
    """Maximum gradient norm."""
    seeds: list[int] = setting([], ">= 0 and < 1e18")
    """Seeds of head, order and views (and of weights that are not pre-trained), one training each; the one that is best
    on the val split is kept, the result has the spread. Empty: `seed`."""
    views: list[Any] = field(default_factory=list)
    """Views (augmentations) of the train records, e.g. `[{name: gaussian, sd_mv: 0.02}, lead_dropout]`."""
    precision: str = setting("auto", choices=("auto", "fp32", "bf16"))
    """Of the training: `auto` is bf16 autocast on GPUs that support it, fp32 elsewhere."""
    memory_gb: float = setting(0.0, ">= 0")
    """Memory of the device for the records of train and val; those that do not fit are read ahead batch by batch
    (0: half of what is free)."""


@dataclass
class TransferConfig(TaskConfig):
    """How to evaluate an encoder on a task."""

    encoder: str = ""
    """An encoder directory, a hub id, or `random` (the architecture of `like`, weights from `seed`)."""
    like: str = ""
    """The encoder directory whose architecture a random encoder copies."""
    output: str = ""
    """The folder for result.json, predictions.parquet and, of what was trained, model/; of several tasks, a folder
    NAME in it for each."""
    pretrained_on: TextOrTexts = ""
    """The folder of the data set that the encoder was pre-trained on, to look for test patients and recordings in it;
    of a mixture the folder of each source, `{ptbxl: DIR, mimic: DIR}` (empty: `data`, or what the run around the
    encoder directory was trained on)."""
    also_trained_on: list[str] = field(default_factory=list)
    """Folders of further data sets that the weights have seen and that are looked at too: those of the encoder that the
    pre-training began with (`init`), or of an earlier fine-tuning."""
    allow_leak: bool = False
    """Evaluate although patients or recordings of the test split were in the pre-training; result.json says so."""
    mode: str = setting("probe", choices=("probe", "finetune", "scratch"))
    """`probe` (frozen features), `finetune`, or `scratch` (the same architecture, trained from random weights)."""
    leads: list[str] = field(default_factory=list)
    """With `mode: probe`, the leads that the encoder sees of each record, such as `[I, II]`; the others are hidden.
    Empty: all."""
    seconds: float = setting(0.0, ">= 0 and <= 1000000")
    """With `mode: probe`, the encoder sees only the first seconds of each record (0: all)."""
    fraction: float = setting(1.0, "> 0 and <= 1")
    """Fraction of the train records to use, per class; at least 2 per class."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of the choice of records, of random weights and of the bootstrap."""
    draw: int = setting(0, ">= 0 and < 1e18")
    """Which choice of records that `seed` gives: a few labels are better or worse by chance, so that the mean over
    several draws says more of an encoder."""
    batch: int = setting(256, ">= 1")
    """Records per forward pass through the encoder."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    bootstrap: int = setting(2000, ">= 0 and <= 1000000", allowed="0, or >= 2 and <= 1000000")
    """Bootstrap resamples of the test patients (0: no intervals; one would be an interval without width)."""
    by: list[str] = field(default_factory=lambda: ["sex", "age", "source"])
    """Columns of samples.parquet by which the test records are also scored apart (`age` in bands of years)."""
    least: int = setting(10, ">= 1")
    """A class is scored in a subgroup that has this many test records with it and this many without (`kind: number`:
    this many records)."""
    features: str = ""
    """The folder where the features of a probe are kept for the next one; empty: `ENCODER-features` beside a local
    encoder directory (nowhere for a random one), `none`: nowhere."""
    figure: bool = False
    """Also draw figure.png: ROC curves and calibration, or numbers told against true ones."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """With `mode: probe`."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """With `mode: finetune` or `scratch`."""

    @property
    def pretrained(self) -> bool:
        """Whether fine-tuning begins with the encoder's weights."""
        return self.mode == "finetune" and self.encoder != "random"

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work, before any work is done."""
        if not self.name:
            raise UserError("no task given: python -m trainer.transfer configs/transfer/rhythm.yaml key=value ...")
        for key in ("encoder", "data", "output"):
            if not getattr(self, key):
                raise UserError(f"key '{key}' is required: {key}={'DIR|random' if key == 'encoder' else 'DIR'}")
        if self.encoder == "random" and not self.like:
            raise UserError("encoder=random needs like=DIR, an encoder directory whose architecture it copies")
        check_fields(self)
        if self.mode != "probe" and (self.leads or self.seconds):
            key = f"leads={self.leads}" if self.leads else f"seconds={self.seconds:g}"
            raise UserError(f"{key} has no effect with mode={self.mode}: use mode=probe, or leave it out")
        if self.bootstrap == 1:
            raise UserError("bootstrap=1 is too few for an interval: use 0 (no intervals), or 2 or more")
        if not self.probe.C or not self.probe.penalty or not self.finetune.lr:
            raise UserError("probe.C, probe.penalty and finetune.lr each need at least one value")
        if len(set(self.finetune.seeds)) < len(self.finetune.seeds):
            raise UserError(f"finetune.seeds={self.finetune.seeds}: each seed once, the same one gives the same result")
