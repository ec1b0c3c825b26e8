"""Encoder directories written by commit 42d8aac give the features that they gave then.

`tests/data/encoder-42d8aac/NAME/` holds what that commit wrote: narrow networks with drawn weights, and the features of
the ECGs made here.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.support.devices import on_each
from umbra import load_encoder

OLD = Path(__file__).parents[1] / "data" / "encoder-42d8aac"
NAMES = sorted(path.name for path in OLD.iterdir())


def ecgs() -> torch.Tensor:
    """Two ECGs of sines, mV [2, 12, 200]."""
    time = torch.arange(200) / 100
    return torch.stack([torch.sin((k + 1) * time) * 0.3 for k in range(24)]).view(2, 12, 200)


@pytest.mark.parametrize("device", on_each())
@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_then(name, device):
    with torch.no_grad():
        found = load_encoder(OLD / name).to(device)(ecgs().to(device)).cpu()
    then = torch.tensor(json.loads((OLD / name / "features.json").read_text()))
    assert then.std() > 1e-3
    close = 1e-6 if device == "cpu" else 1e-3 * then.abs().max()  # a GPU convolves in TF32
    assert torch.allclose(found, then, rtol=0, atol=close)


def test_one_of_each_kind_is_there():
    assert NAMES == ["resnet18", "vit_s", "xresnet1d101"]
