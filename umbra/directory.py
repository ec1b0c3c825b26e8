"""The files of an encoder directory: `config.json`, `model.safetensors` and `golden.safetensors`, here or from the hub.

Only JSON and safetensors are read, so that a third party's encoder never runs its code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from umbra.encoders.config import FORMAT, SCALINGS, EncoderConfig
from umbra.errors import UserError, nearest, of_the_hub
from umbra.files import damaged, read_json, write_bytes
from umbra.signal import RATES
from umbra.typed import typed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
FIX = "export the encoder again"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COUNTS = (torch.int64, torch.int32)  # of batch norm


def read_config(directory: str | Path) -> EncoderConfig:
    """Reads `directory/config.json`. Raises `UserError` if it is missing, damaged or of another format version."""
    path = Path(directory) / CONFIG
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: {directory} is not an encoder directory (`python -m trainer.export`)")
    content = read_json(path, FIX)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}, this version reads {FORMAT}: {FIX}")
    try:
        config = typed(EncoderConfig, content)
        _check(config)
    except ValueError as error:
        raise damaged(path, error, FIX) from error
    return config


def _check(config: EncoderConfig) -> None:
    """Raises `ValueError` for values that no export writes."""
    for key in ("dim", "samples"):
        if getattr(config, key) <= 0:
            raise ValueError(f"'{key}' is {getattr(config, key)}")
    low, high = RATES
    if not low <= config.rate <= high:
        raise ValueError(f"'rate' is {config.rate:g}, not one of {low:g} to {high:g} Hz")
    if config.units != "mV":
        raise ValueError(f"'units' is {config.units}, the encoder takes mV")
    if config.scaling["mode"] not in SCALINGS:
        raise ValueError(f"'scaling.mode' is {config.scaling['mode']}, not {' or '.join(SCALINGS)}")
    sizes = len(config.leads), len(config.scaling["mean_mv"]), len(config.scaling["std_mv"])
    if not 0 < min(sizes) == max(sizes):
        raise ValueError("it has {} leads, {} means and {} standard deviations".format(*sizes))
    if twice := [lead for lead in config.leads if config.leads.count(lead) > 1]:
        raise ValueError(f"'leads' has {twice[0]} twice")


def encoder_directory(path_or_hub_id: str | Path, argument: str = "path_or_hub_id", **download: Any) -> Path:
    """The directory itself, or what is downloaded for a hub id: `config.json` and `model.safetensors`.

    `argument`: what errors call it; `download`: arguments of `huggingface_hub.snapshot_download`. Raises `UserError` if
    there is neither, `TypeError` for what is neither text nor a path.
    """
    if not isinstance(path_or_hub_id, str | os.PathLike):
        raise TypeError(f"{argument} must be a path or a hub id, not {type(path_or_hub_id).__name__}")
    path = Path(path_or_hub_id)
    if os.path.isdir(path):
        return path
    if os.path.exists(path) or not HUB_ID.fullmatch(str(path_or_hub_id)):
        raise UserError(f"{path_or_hub_id} is neither an encoder directory nor a hub id of the form owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"'{path_or_hub_id}' is not a local directory, and the hub needs a package: pip install 'umbra[hub]'"
        ) from error
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=[CONFIG, WEIGHTS, GOLDEN], **download))
    except Exception as error:
        raise UserError(
            f"'{path_or_hub_id}' is not a local directory, and downloading it from the hub failed: {of_the_hub(error)}"
        ) from error


def read_weights(path: Path, fix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises `UserError`, which ends in `fix`, if it is missing or damaged, a type is none of `FLOATS` and `COUNTS`, or a
    value is not finite.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: {fix}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error, fix) from error
    if wrong := [name for name, tensor in weights.items() if tensor.dtype not in FLOATS + COUNTS]:
        raise damaged(path, f"'{wrong[0]}' is of {weights[wrong[0]].dtype}, which no export writes", fix)
    if wrong := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise damaged(path, f"'{wrong[0]}' has values that are not finite", fix)
    return weights


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in weights.items()}))


def mismatch(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Why `given` cannot be loaded as `wanted` (names, shapes, whole numbers or not), in one line; empty if it can."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        near = nearest(missing[0], extra or given)
        return f"{len(missing)} weights are missing, first '{missing[0]}'" + (f" (closest: '{near}')" if near else "")
    if extra:
        return f"{len(extra)} weights are unknown, first '{extra[0]}'"
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            return f"'{name}' has shape {list(given[name].shape)}, expected {list(tensor.shape)}"
        if tensor.is_floating_point() != given[name].is_floating_point():
            return f"'{name}' is of {given[name].dtype}, expected {tensor.dtype}"
    return ""
