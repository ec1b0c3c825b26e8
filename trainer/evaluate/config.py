"""The keys of a transfer."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.evaluate.task import TaskConfig
from umbra.config import check_fields, setting
from umbra.errors import UserError


@dataclass
class ProbeConfig:
    """Logistic regression on frozen features."""

    C: list[float] = setting([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "> 0")
    """Inverse regularisations that the val split chooses from."""


@dataclass
class FinetuneConfig:
    """AdamW with a cosine schedule."""

    lr: list[float] = setting([3e-4, 1e-3], "> 0")
    """Learning rates that the val split chooses from."""
    epochs: int = setting(20, ">= 1")
    """Passes over the train records; the val split chooses one of them."""
    batch: int = setting(64, ">= 1")
    """Records per step."""
    weight_decay: float = setting(1e-2, ">= 0")
    """Decoupled weight decay."""
    clip: float = setting(1.0, "> 0")
    """Largest gradient norm."""


@dataclass
class TransferConfig(TaskConfig):
    """How to test an encoder on a task."""

    encoder: str = ""
    """A directory, a hub id, or `random` (the architecture of `like`, weights from `seed`)."""
    like: str = ""
    """The encoder directory whose architecture a random encoder takes."""
    output: str = ""
    """The folder for result.json and predictions.parquet."""
    mode: str = setting("probe", choices=("probe", "finetune", "scratch"))
    """`probe` (frozen features), `finetune`, or `scratch` (the architecture with fresh weights)."""
    fraction: float = setting(1.0, "> 0 and <= 1")
    """Share of the train labels, per class and at least 2."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of the fraction, of fresh weights and of the resamples."""
    batch: int = setting(256, ">= 1")
    """Records of one pass through the encoder."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    bootstrap: int = setting(2000, ">= 0")
    """Resamples of the test patients."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """With `mode: probe`."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """With `mode: finetune` or `scratch`."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work, before any work is done."""
        if not self.name:
            raise UserError(
                "name the task first: python -m trainer.transfer configs/transfer/rhythm.yaml key=value ..."
            )
        for key in ("encoder", "data", "output"):
            if not getattr(self, key):
                raise UserError(f"key '{key}' is needed: {key}={'DIR|random' if key == 'encoder' else 'DIR'}")
        if self.encoder == "random" and not self.like:
            raise UserError("encoder=random needs like=DIR, an encoder directory whose architecture it takes")
        check_fields(self)
        if not self.probe.C or not self.finetune.lr:
            raise UserError("probe.C and finetune.lr each need at least one value")
