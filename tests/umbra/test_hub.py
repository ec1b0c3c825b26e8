import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.damage import DAMAGES
from tests.support.handmade import SAMPLES, SCALING, make_run
from trainer.export import export
from umbra.directory import read_config
from umbra.errors import UserError
from umbra.hub import initialise, load_encoder
from umbra.leads import CANONICAL


@pytest.fixture
def directory(tmp_path):
    return export(make_run(tmp_path / "run"))


def test_a_process_that_loads_an_encoder_stays_free_of_the_training_stack(directory):
    code = f"""
import sys
from umbra import __version__, load_encoder
import torch
encoder = load_encoder({str(directory)!r})
assert encoder(torch.zeros(2, 12, {SAMPLES})).shape == (2, encoder.config.dim)
heavy = ["deepspeed", "wandb", "webdataset", "matplotlib", "sklearn", "pyarrow", "huggingface_hub"]
print(__version__, [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


SHAPES = [(12, SAMPLES - 1), (SAMPLES,), (1, 1, 12, SAMPLES), (1, 8, SAMPLES), (1, 12, SAMPLES - 1), (1, SAMPLES, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_input_of_another_shape_is_refused_with_the_shape_that_it_takes(directory, shape):
    with pytest.raises(UserError, match=rf"12 leads, {SAMPLES} samples at 100 Hz\], not \["):
        load_encoder(directory)(torch.zeros(shape))


def test_the_module_is_in_eval_mode_and_gives_no_gradients_until_they_are_asked_for(directory):
    encoder, x = load_encoder(directory), torch.randn(2, 12, SAMPLES)
    assert not encoder.training
    assert encoder(x).numpy().shape == (2, encoder.config.dim)
    assert not encoder.tokens(x).requires_grad

    def trained() -> bool:
        encoder.zero_grad()
        encoder(x).sum().backward()
        return all(p.grad is not None for p in encoder.backbone.parameters())

    torch.nn.Sequential(encoder, torch.nn.Linear(encoder.config.dim, 1)).train()
    assert trained()
    encoder.eval().requires_grad_()
    assert trained()
    with torch.no_grad():
        assert not encoder(x).requires_grad
    encoder.requires_grad_(False)
    assert not encoder(x).requires_grad
    wave = x.clone().requires_grad_()
    encoder(wave).sum().backward()
    assert wave.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.int64, torch.uint8])
def test_any_real_number_and_one_ecg_are_taken(directory, dtype):
    encoder, x = load_encoder(directory), torch.randint(0, 9, (2, 12, SAMPLES)).to(dtype)
    features = encoder(x)
    assert features.dtype == torch.float32
    assert torch.equal(features, encoder(x.float()))
    torch.testing.assert_close(encoder(x[1]), features[1])


@pytest.mark.parametrize(("kind", "close"), [("half", 2e-2), ("bfloat16", 1e-1), ("double", 1e-4)])
def test_the_module_may_be_of_another_precision(directory, kind, close):
    encoder, x = load_encoder(directory), torch.randn(2, 12, SAMPLES)
    features = encoder(x)
    other = getattr(encoder, kind)()(x)
    assert other.dtype == next(encoder.parameters()).dtype
    torch.testing.assert_close(other.float(), features, rtol=0, atol=close * features.abs().max())


def test_broken_directories_are_one_clear_line(directory, tmp_path):
    weights = load_file(directory / "model.safetensors")
    name = next(k for k in weights if k.startswith("backbone.") and weights[k].ndim > 1)

    def says(text):
        with pytest.raises(UserError, match=text) as caught:
            load_encoder(directory)
        assert "\n" not in str(caught.value)

    save_file(
        {k: v for k, v in weights.items() if k != name} | {name + "x": weights[name]}, directory / "model.safetensors"
    )
    says(f"'{name}' \\(closest: '{name}x'\\)")
    save_file(weights | {name: weights[name][1:].clone()}, directory / "model.safetensors")
    says("has shape")
    (directory / "model.safetensors").write_bytes(b"\x80\x04pickle")
    says("model.safetensors is damaged")
    (directory / "model.safetensors").unlink()
    says("model.safetensors does not exist")
    (directory / "config.json").write_text(json.dumps({"format": 99}))
    says("format 99")
    (directory / "config.json").write_text("{")
    says("damaged")
    (directory / "config.json").unlink()
    says("not an encoder directory")


def test_a_hub_id_fetches_only_json_and_safetensors(directory, monkeypatch):
    asked = {}

    def snapshot_download(name, **keys):
        asked.update(keys, name=name)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_encoder("someone/ecg").config.samples == SAMPLES
    assert asked["name"] == "someone/ecg"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors", "golden.safetensors"]


def test_what_is_neither_directory_nor_hub_id_is_said(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither an encoder directory nor a hub id"):
        load_encoder(tmp_path / "nothing" / "here")

    def refuse(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="hub failed: no network"):
        load_encoder("runs/encoder")


def test_fresh_weights_depend_on_the_seed_alone(directory):
    config = read_config(directory)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (list(initialise(config, s).parameters())[0] for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


CONFIGS = [
    ({"scaling": {}}, "it lacks 'scaling.mean_mv'"),
    ({"scaling": "x"}, "'scaling' must be a mapping, not 'x'"),
    ({"scaling": SCALING | {"mean_mv": ["a"] * 12}}, r"'scaling.mean_mv\[0\]' must be a number, not 'a'"),
    ({"scaling": SCALING | {"std_mv": [1.0]}}, "it has 12 leads, 12 means and 1 standard deviations"),
    ({"scaling": SCALING | {"mode": "fix"}}, "'scaling.mode' is fix, not fixed or record"),
    ({"samples": "1000"}, "'samples' must be a whole number, not '1000'"),
    ({"samples": -1}, "'samples' is -1"),
    ({"rate": 0}, "'rate' is 0"),
    ({"leads": "I"}, "'leads' must be a list"),
    ({"leads": []}, "it has 0 leads"),
    ({"leads": [*CANONICAL[:11], "I"]}, "'leads' has I twice"),
    ({"architecture": None}, "'architecture' must be a mapping, not None"),
    ({"architecture": {"name": "resnet18"}}, "it lacks 'architecture.args'"),
    ({"architecture": {"name": ["resnet18"], "args": {}}}, r"'architecture.name' must be a text"),
    ({"units": "uV"}, "'units' is uV, the encoder takes mV"),
    ({"dim": 7}, "says dim 7, its architecture has 64"),
    ({"dim": 0}, "'dim' is 0"),
    ({"rate": 1e-3}, "'rate' is 0.001, not one of 50 to 20000 Hz"),
    ({"rate": 1e308}, r"'rate' is 1e\+308, not one of 50"),
    ({"more": 1}, "unknown 'more'"),
]


@pytest.mark.parametrize(("change", "said"), CONFIGS, ids=[said for _, said in CONFIGS])
def test_a_config_of_wrong_content_is_named(change, said, directory):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"config.json .*{said}.*: export the encoder again$") as caught:
        load_encoder(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_one_clear_line(name, damage, directory):
    DAMAGES[damage](directory / name)
    with pytest.raises(UserError, match=name) as caught:
        load_encoder(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [None, 3, b"runs", ["runs"]])
def test_what_is_no_path_is_a_type_error_that_names_the_argument(place):
    with pytest.raises(TypeError, match="path_or_hub_id must be a path or a hub id, not "):
        load_encoder(place)


@pytest.mark.parametrize("place", ["x" * 5000, "a\0b", "", "/etc/passwd", "/etc/passwd/x"])
def test_what_is_no_directory_is_said(place):
    with pytest.raises(UserError, match=r"neither an encoder directory nor a hub id|not an encoder directory"):
        load_encoder(place)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", 3.5, None])
def test_a_device_that_is_not_here_is_one_line(device, directory):
    with pytest.raises(UserError, match=r"device=.* cannot be used here: give 'cpu'") as caught:
        load_encoder(directory, device=device)
    assert "\n" not in str(caught.value)


def test_a_numpy_array_is_said_to_be_none_of_torch(directory):
    with pytest.raises(TypeError, match=r"takes a torch tensor, not ndarray: give torch.as_tensor"):
        load_encoder(directory)(np.zeros((1, 12, SAMPLES), np.float32))


# ---- the golden input and output ----


def test_check_compares_the_features_with_those_of_the_export(directory):
    assert sorted(load_file(directory / "golden.safetensors")) == ["ecg", "features"]
    assert load_encoder(directory, check=True).config.samples == SAMPLES
    weights = load_file(directory / "model.safetensors")
    name = "backbone.embed.weight"
    save_file(weights | {name: weights[name] * 1.01}, directory / "model.safetensors")
    load_encoder(directory)
    with pytest.raises(
        UserError, match=r"golden.safetensors: the features differ .* by 0\.0\d+ of the largest"
    ) as caught:
        load_encoder(directory, check=True)
    assert "\n" not in str(caught.value)


def test_a_directory_of_an_older_version_loads_and_says_that_it_cannot_be_checked(directory):
    (directory / "golden.safetensors").unlink()
    load_encoder(directory)
    with pytest.raises(
        UserError, match=r"^check=True: .*golden.safetensors does not exist, so nothing can be compared"
    ):
        load_encoder(directory, check=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_golden_files_are_one_clear_line(damage, directory):
    DAMAGES[damage](directory / "golden.safetensors")
    with pytest.raises(UserError, match=r"golden.safetensors") as caught:
        load_encoder(directory, check=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"ecg": torch.zeros(2, 12, 9), "features": torch.zeros(2, 64)},
            r"does not hold the features of an ecg \[2, 12",
        ),
        ({"features": torch.zeros(2, 64)}, "does not hold"),
        (
            {"ecg": torch.zeros(2, 12, SAMPLES), "features": torch.zeros(2, 3)},
            r"it holds features \[2, 3\], .* \[2, 64\]",
        ),
    ],
)
def test_golden_files_of_other_content_are_named(content, said, directory):
    save_file(content, directory / "golden.safetensors")
    with pytest.raises(UserError, match=said):
        load_encoder(directory, check=True)


@pytest.mark.parametrize("kind", [torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["golden.safetensors", "model.safetensors"])
def test_a_tensor_of_a_type_that_no_export_writes_is_named(name, kind, directory):
    tensors = load_file(directory / name)
    first = sorted(tensors)[0]
    save_file(tensors | {first: tensors[first].to(kind)}, directory / name)
    with pytest.raises(
        UserError, match=rf"{name} is damaged \('{first}' is of {kind}, which no export writes\)"
    ) as caught:
        load_encoder(directory, check=True)
    assert "\n" not in str(caught.value)


def test_weights_of_whole_numbers_are_not_loaded_as_real_ones(directory):
    weights = load_file(directory / "model.safetensors")
    name = "backbone.embed.weight"
    save_file(weights | {name: weights[name].long()}, directory / "model.safetensors")
    with pytest.raises(UserError, match=f"'{name}' is of torch.int64, expected torch.float32"):
        load_encoder(directory)
