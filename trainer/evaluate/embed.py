"""Loads the encoder to evaluate and computes its features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.shards import Shards
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.recorded import as_recorded
from trainer.evaluate.task import Labelled
from trainer.game.batchnorm import batch_norms, estimate
from umbra.directory import read_config
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError, naming
from umbra.hub import initialise, load_encoder


def open_encoder(config: TransferConfig, train: Labelled) -> Encoder:
    """The encoder that the config names, on its device; randomly initialised for `encoder=random` or `mode=scratch`.

    In a random encoder that is probed, batch norm gets the mean and variance of the train records, as in an exported
    encoder those of its training ECGs. An encoder of another length is resized to the data's, where its network allows.
    Raises `UserError` if the data do not match the encoder's input.
    """
    name, device = config.like if config.encoder == "random" else config.encoder, device_of(config.device)
    fresh = config.encoder == "random" or config.mode == "scratch"
    encoder = initialise(read_config(name), config.seed).to(device) if fresh else load_encoder(name, device)
    encoder = as_recorded(_fitted(encoder, train.shards, config), config.leads, config.seconds)
    if fresh and batch_norms(encoder) and config.mode == "probe":
        estimate(encoder, (signals(part, device) for part in parts_of(train, config.batch)))
    return encoder


def _fitted(encoder: Encoder, shards: Shards, config: TransferConfig) -> Encoder:
    """The encoder for windows of the data's length. Raises `UserError` if the data's leads or rate are not those of the
    encoder, or if its network takes no other length."""
    wanted, given = encoder.config, shards.manifest
    for what in ("rate", "leads"):
        if getattr(wanted, what) != getattr(given, what):
            raise UserError(
                f"the encoder needs {what} {getattr(wanted, what)}, {config.data} has {getattr(given, what)}: "
                "build the shards with the rate, seconds and leads of the encoder"
            )
    if wanted.samples == given.samples:
        return encoder
    seconds, own = given.samples / given.rate, wanted.samples / wanted.rate
    with naming(f"{config.data} has windows of {seconds:g} s"):
        fitted = encoder.resized(given.samples)
    print(f"# the encoder's windows are {own:g} s, those of {config.data} {seconds:g} s, which it takes whole")
    return fitted


def device_of(name: str) -> torch.device:
    """The device of this name. Raises `UserError` if it is not available."""
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    here = ["auto", "cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in here:
        raise UserError(f"device={name} is not available; use {' or '.join(here)}")
    return torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)


def signals(data: Labelled, device: torch.device) -> Tensor:
    """The ECGs of these records in mV, float32 `[n, leads, samples]`."""
    return torch.from_numpy(data.shards.read_mv(data.index)).to(device)


def embed(encoder: nn.Module, data: Labelled, batch: int) -> np.ndarray:
    """Features of these records, float32 `[n, D]`, from the encoder in eval mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        parts = [encoder(signals(part, device)).float().cpu().numpy() for part in parts_of(data, batch)]
    return np.concatenate(parts)


def parts_of(data: Labelled, batch: int) -> Iterator[Labelled]:
    """The records in order, `batch` at a time."""
    for start in range(0, len(data), batch):
        yield data.take(np.arange(start, min(start + batch, len(data))))
