import json

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn

from tests.support.damage import DAMAGES
from umbra import Predictor, load_predictor
from umbra.directory import save_weights
from umbra.encoders.encoder import EncoderConfig
from umbra.errors import UserError
from umbra.hub import initialise
from umbra.predictor import HeadConfig, save_head

SCALING = {"mode": "fixed", "mean_mv": [0.0], "std_mv": [1.0]}
ARCHITECTURE = {"name": "resnet18", "args": {"width": 4, "groups": 2, "embedding": 6}}
CONFIG = EncoderConfig(ARCHITECTURE, 6, 100.0, ["II"], 64, SCALING)


def make(folder, kind="classes", names=("A", "B", "C"), **scale):
    folder.mkdir(exist_ok=True)
    head = nn.Linear(6, len(names))
    save_weights(folder / "model.safetensors", initialise(CONFIG, 0).state_dict())
    (folder / "config.json").write_text(CONFIG.to_json())
    save_head(folder, head, HeadConfig(kind, list(names), "task", **scale))
    return head


@pytest.mark.parametrize("kind", ["classes", "labels", "number"])
def test_a_prediction_is_what_its_kind_says_by_hand(tmp_path, kind):
    scale = {"mean": [50.0, 1.0, 0.0], "std": [20.0, 2.0, 1.0]} if kind == "number" else {}
    head, x = make(tmp_path, kind, **scale), torch.randn(4, 1, 64)
    model = load_predictor(tmp_path)
    output = (model.encoder(x) @ head.weight.T + head.bias).detach().double().numpy()
    wanted = {
        "classes": softmax(output, axis=1),
        "labels": expit(output),
        "number": output * [20.0, 2.0, 1.0] + [50.0, 1.0, 0.0],
    }
    np.testing.assert_allclose(model(x).numpy(), wanted[kind], rtol=1e-5)
    assert isinstance(model, Predictor)
    assert not model.training
    assert model.names == ["A", "B", "C"]


def test_predictions_carry_gradients_where_they_are_wanted(tmp_path):
    make(tmp_path)
    model, x = load_predictor(tmp_path), torch.randn(4, 1, 64)
    assert not model(x).requires_grad
    assert model(x.clone().requires_grad_()).requires_grad, "for saliency"
    assert model.train()(x).requires_grad
    assert model.eval().requires_grad_()(x).requires_grad
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.requires_grad_(False)(x).requires_grad


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_head_is_one_line_that_names_it(tmp_path, name, damage):
    make(tmp_path)
    DAMAGES[damage](tmp_path / name)
    with pytest.raises(UserError, match=name) as caught:
        load_predictor(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "ranks"}, "'kind' is ranks, not classes or labels or number"),
        ({"names": []}, "'names' is empty"),
        ({"names": ["A"]}, r"head.safetensors does not match head.json .* shape \[3, 6\], expected \[1, 6\]"),
        ({"kind": "number"}, "kind number has 3 values of 'mean' and 'std'"),
        ({"mean": [1.0]}, "kind classes has 0 values"),
        ({"format": 2}, "head.json has format 2, this version reads 1"),
    ],
)
def test_what_no_fit_writes_is_one_line(tmp_path, change, said):
    make(tmp_path)
    path = tmp_path / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_predictor(tmp_path)


def test_an_encoder_without_a_head_says_how_to_get_one(tmp_path):
    make(tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(UserError, match=r"head.json cannot be read .*: fine-tune again"):
        load_predictor(tmp_path)
