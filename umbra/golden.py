"""The golden input and output of an encoder directory: do weights, code and torch give the features of the export?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from umbra.encoders.encoder import Encoder

MOST = {"cpu": 1e-4}  # of the largest feature; other devices may compute in TF32
MOST_ELSEWHERE = 1e-2


def make(encoder: Encoder) -> dict[str, Tensor]:
    """Two drawn inputs of the training data's spread, mV `ecg` [2, leads, samples], and their `features` [2, dim]."""
    config = encoder.config
    drawn = torch.randn(2, len(config.leads), config.samples, generator=torch.Generator().manual_seed(0))
    ecg = drawn * encoder.scaling.std.cpu() + encoder.scaling.mean.cpu()
    return {"ecg": ecg, "features": _features(encoder, ecg)}


def difference(encoder: Encoder, golden: Mapping[str, Tensor]) -> str:
    """Why `encoder` does not give the golden features of the golden input; empty if it does."""
    shape = [2, len(encoder.config.leads), encoder.config.samples]
    if golden.keys() != {"ecg", "features"} or list(golden["ecg"].shape) != shape:
        return f"it does not hold the features of an ecg {shape}"
    found, wanted = _features(encoder, golden["ecg"]), golden["features"]
    if found.shape != wanted.shape:
        return f"it holds features {list(wanted.shape)}, the encoder gives {list(found.shape)}"
    most = MOST.get(next(encoder.parameters()).device.type, MOST_ELSEWHERE)
    apart = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if apart <= most:
        return ""
    return f"the features differ from those of the export by {apart:.2g} of the largest (at most {most:g} may)"


def _features(encoder: Encoder, ecg: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(ecg.to(next(encoder.parameters()).device)).float().cpu()
