"""The config keys of an evaluation (`python -m trainer.transfer`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.evaluate.task import TaskConfig
from umbra.config import check_fields, setting
from umbra.errors import UserError


@dataclass
class ProbeConfig:
    """Logistic regression on frozen features."""

    C: list[float] = setting([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "> 0")
    """Candidate inverse regularisation strengths; the best on the val split is used."""


@dataclass
class FinetuneConfig:
    """AdamW with a cosine schedule."""

    lr: list[float] = setting([3e-4, 1e-3], "> 0")
    """Candidate learning rates; the best on the val split is used."""
    epochs: int = setting(20, ">= 1 and <= 100000")
    """Passes over the train records; the best epoch on the val split is used."""
    batch: int = setting(64, ">= 1")
    """Records per step."""
    weight_decay: float = setting(1e-2, ">= 0")
    """Decoupled weight decay."""
    clip: float = setting(1.0, "> 0")
    """Maximum gradient norm."""


@dataclass
class TransferConfig(TaskConfig):
    """How to evaluate an encoder on a task."""

    encoder: str = ""
    """An encoder directory, a hub id, or `random` (the architecture of `like`, weights from `seed`)."""
    like: str = ""
    """The encoder directory whose architecture a random encoder copies."""
    output: str = ""
    """The folder for result.json and predictions.parquet."""
    pretrained_on: str = ""
    """The folder of the data set that the encoder was pre-trained on, to look for test patients and recordings in it
    (empty: `data`, or what the run around the encoder directory was trained on)."""
    allow_leak: bool = False
    """Evaluate although patients or recordings of the test split were in the pre-training; result.json says so."""
    mode: str = setting("probe", choices=("probe", "finetune", "scratch"))
    """`probe` (frozen features), `finetune`, or `scratch` (the same architecture, trained from random weights)."""
    fraction: float = setting(1.0, "> 0 and <= 1")
    """Fraction of the train records to use, per class; at least 2 per class."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of the choice of records, of random weights and of the bootstrap."""
    batch: int = setting(256, ">= 1")
    """Records per forward pass through the encoder."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    bootstrap: int = setting(2000, ">= 0 and <= 1000000", allowed="0, or >= 2 and <= 1000000")
    """Bootstrap resamples of the test patients (0: no intervals; one would be an interval without width)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """With `mode: probe`."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """With `mode: finetune` or `scratch`."""

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
        if self.bootstrap == 1:
            raise UserError("bootstrap=1 is too few for an interval: use 0 (no intervals), or 2 or more")
        if not self.probe.C or not self.finetune.lr:
            raise UserError("probe.C and finetune.lr each need at least one value")
