"""The encoder directory: reading its `config.json` and loading the encoder.

Needs torch, safetensors and the model code, but not the training stack. Only JSON and safetensors are read, so loading
a third-party encoder never runs its code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from umbra.encoders.encoder import FORMAT, Encoder, EncoderConfig
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError, nearest
from umbra.files import write_bytes

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_encoder(path_or_hub_id: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Loads an encoder from its directory or from the Hugging Face hub; the module is in eval mode.

    The module takes mV `[B, leads, samples]` (float, at `module.config.rate` Hz, leads in the order of
    `module.config.leads`) and returns features `[B, module.config.dim]`; scaling is included. Raises `UserError` if
    the directory or hub id does not exist or its files are missing, damaged or inconsistent; the module raises it for
    an input of the wrong shape.
    """
    directory = _directory(path_or_hub_id)
    config = read_config(directory)
    encoder = initialise(config)
    _load_weights(encoder, directory / WEIGHTS)
    return encoder.to(device)


def initialise(config: EncoderConfig, seed: int | None = None) -> Encoder:
    """The encoder of `config` with randomly initialised weights from `seed` (None: torch's global generator)."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            backbone = build_encoder(
                config.architecture["name"], len(config.leads), config.samples, dict(config.architecture["args"])
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"the architecture {config.architecture} cannot be built: {error}") from error
    return Encoder(backbone, config).eval()


def read_config(directory: str | Path) -> EncoderConfig:
    """Reads `directory/config.json`. Raises `UserError` if it is missing, damaged or of another format version."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist: {directory} is not an encoder directory (`python -m trainer.export`)")
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise UserError(f"{path} has format {content.get('format')}, this version reads {FORMAT}: export it again")
        return EncoderConfig(**content)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): export the encoder again") from error


def _directory(path_or_hub_id: str | Path) -> Path:
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(str(path_or_hub_id)):
        raise UserError(f"{path_or_hub_id} is neither an encoder directory nor a hub id of the form owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"'{path_or_hub_id}' is not a local directory, and the hub needs a package: pip install 'umbra[hub]'"
        ) from error
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"'{path_or_hub_id}' is not a local directory, and downloading it from the hub failed: {reason}"
        ) from error


def _load_weights(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist: the encoder directory is incomplete; export it again")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): export the encoder again") from error
    problem = mismatch(encoder.state_dict(), weights)
    if problem:
        raise UserError(f"{path} does not match the {CONFIG} next to it: {problem}")
    encoder.load_state_dict(weights)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in weights.items()}))


def mismatch(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Why `given` cannot be loaded as `wanted` (names or shapes), in one line; empty if it can."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        near = nearest(missing[0], extra or given)
        return f"{len(missing)} weights are missing, first '{missing[0]}'" + (f" (closest: '{near}')" if near else "")
    if extra:
        return f"{len(extra)} weights are unknown, first '{extra[0]}'"
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            return f"'{name}' has shape {list(given[name].shape)}, expected {list(tensor.shape)}"
    return ""
