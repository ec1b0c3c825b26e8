"""`load_encoder`: an encoder from its directory or from the hub.

Needs torch, safetensors and the model code, but not the training stack. The files are those of `umbra.directory`, whose
names are also here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from umbra.directory import CONFIG, WEIGHTS, encoder_directory, mismatch, read_config, read_weights, save_weights
from umbra.encoders.config import EncoderConfig
from umbra.encoders.encoder import Encoder
from umbra.encoders.pretrained import usable

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "EncoderConfig",
    "encoder_directory",
    "initialise",
    "load_encoder",
    "mismatch",
    "read_config",
    "read_weights",
    "save_weights",
]


def load_encoder(path_or_hub_id: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Loads an encoder from its directory or from the Hugging Face hub; the module is in eval mode.

    The module takes mV `[B, leads, samples]` (float, at `module.config.rate` Hz, leads in the order of
    `module.config.leads`) and returns features `[B, module.config.dim]`; scaling is included. Raises `UserError` if
    the directory or hub id does not exist or its files are missing, damaged or inconsistent; the module raises it for
    an input of the wrong shape. Raises `TypeError` for a `path_or_hub_id` that is neither text nor a path.
    """
    place = usable(device)
    return Encoder.read(encoder_directory(path_or_hub_id)).to(place)


def initialise(config: EncoderConfig, seed: int | None = None) -> Encoder:
    """The encoder of `config` with randomly initialised weights from `seed` (None: torch's global generator)."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return Encoder.of(config)
