"""`init=ENCODER`: a run that goes on from the weights of an exported encoder, and what is kept of that encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from trainer.config import PretrainConfig
from umbra.directory import WEIGHTS, encoder_directory
from umbra.encoders.config import EncoderConfig, ScalingOf
from umbra.encoders.registry import whole_args
from umbra.errors import UserError, naming
from umbra.files import sha256
from umbra.hub import load_encoder
from umbra.schema import Manifest


class Origin(TypedDict):
    """What a run keeps of the encoder that it began with: `run.json`, the state of checkpoints, the exported config.

    `sha256`: of its model.safetensors; `scaling`: the run's too; `training` and `data`: those of its config.json.
    """

    sha256: str
    scaling: ScalingOf
    training: dict[str, Any]
    data: dict[str, Any]


def read_init(cfg: PretrainConfig, manifest: Manifest) -> tuple[Origin, dict[str, Tensor]]:
    """The origin and the backbone's weights of the encoder that `cfg.init` names, a directory or a hub id.

    Raises `UserError` if it cannot be loaded, or if the run's architecture, leads, rate or scaling is another. Its
    length may be another.
    """
    with naming(f"init={cfg.init}"):
        directory = encoder_directory(cfg.init)
        encoder = load_encoder(directory)
        _check(cfg, manifest, encoder.config)
    about = encoder.config
    weights = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    return Origin(
        sha256=sha256(Path(directory) / WEIGHTS), scaling=about.scaling, training=about.training, data=about.data
    ), weights


def _check(cfg: PretrainConfig, manifest: Manifest, about: EncoderConfig) -> None:
    name, args = about.architecture["name"], about.architecture["args"]
    if cfg.encoder.name != name:
        raise UserError(f"the encoder is a {name}, this run trains a {cfg.encoder.name}: give encoder.name={name}")
    here, there = whole_args(name, cfg.encoder.args), whole_args(name, args)
    if other := [f"encoder.args.{key}={value}" for key, value in there.items() if here.get(key) != value]:
        raise UserError(f"the encoder's architecture is not this run's: give {' '.join(other)}")
    for what in ("leads", "rate"):
        wanted, given = getattr(about, what), getattr(manifest, what)
        if wanted != given:
            data, own = (", ".join(v) if isinstance(v, list) else f"{v:g} Hz" for v in (given, wanted))
            raise UserError(
                f"the encoder has {what} {own}, the data have {data}: build the shards with the encoder's {what}"
            )
    if cfg.scaling != (mode := about.scaling["mode"]):
        raise UserError(f"the encoder has scaling={mode}, this run scaling={cfg.scaling}: give scaling={mode}")
