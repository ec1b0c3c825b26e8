"""`load_encoder`: an encoder from its directory or from the hub.

Needs torch, safetensors and the model code, but not the training stack. The files are those of `umbra.directory`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from umbra.directory import FIX, GOLDEN, encoder_directory, read_weights
from umbra.encoders.config import EncoderConfig
from umbra.encoders.encoder import Encoder
from umbra.encoders.pretrained import usable
from umbra.errors import UserError
from umbra.golden import difference


def load_encoder(path_or_hub_id: str | Path, device: str | torch.device = "cpu", check: bool = False) -> Encoder:
    """Loads an encoder from its directory or from the Hugging Face hub; the module is in eval mode.

    The module takes mV `[B, leads, samples]` (float, at `module.config.rate` Hz, leads in the order of
    `module.config.leads`) and returns features `[B, module.config.dim]`; scaling is included. Raises `UserError` if
    the directory or hub id does not exist or its files are missing, damaged or inconsistent; the module raises it for
    an input of the wrong shape. Raises `TypeError` for a `path_or_hub_id` that is neither text nor a path.

    `check`: compares features on the device with those of the export (`golden.safetensors`); raises `UserError` if they
    differ, or if the directory is of an older version and has none. `embed` takes ECGs of any rate, leads and length.
    """
    place = usable(device)
    directory = encoder_directory(path_or_hub_id)
    encoder = Encoder.read(directory).to(place)
    if check:
        _compare(encoder, directory / GOLDEN)
    return encoder


def initialise(config: EncoderConfig, seed: int | None = None) -> Encoder:
    """The encoder of `config` with randomly initialised weights from `seed` (None: torch's global generator)."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return Encoder.of(config)


def _compare(encoder: Encoder, path: Path) -> None:
    if not os.path.isfile(path):
        raise UserError(f"check=True: {path} does not exist, so nothing can be compared; leave out check, or {FIX}")
    if problem := difference(encoder, read_weights(path, FIX)):
        raise UserError(f"{path}: {problem}: another network or other weights than exported? {FIX}")
