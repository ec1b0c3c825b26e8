"""The hub's three methods of an encoder: the arguments of its mixin, and what they write `load_encoder` reads."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import load_file, save_file

from tests.support.handmade import SAMPLES, make_run, small_encoder
from tests.support.hub_server import TOKEN, point_client_at, serving
from trainer.export import export
from umbra import Encoder, load_encoder
from umbra.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return export(make_run(tmp_path_factory.mktemp("made") / "run"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        point_client_at(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.mark.parametrize("method", ["from_pretrained", "save_pretrained", "push_to_hub"])
def test_the_arguments_are_those_of_the_mixin(method):
    ours = inspect.signature(getattr(Encoder, method)).parameters
    theirs = dict(inspect.signature(getattr(PyTorchModelHubMixin, method)).parameters)
    theirs.pop("model_kwargs", None)
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name
    assert list(ours)[: len(theirs)] == list(theirs)
    extra = {"from_pretrained": ["map_location", "strict"]}.get(method, [])  # of its _from_pretrained
    assert list(ours)[len(theirs) :] == extra


def test_what_is_saved_is_loaded_again_bit_by_bit(directory, tmp_path):
    encoder = Encoder.from_pretrained(directory)
    assert type(encoder) is Encoder
    assert not encoder.training
    assert encoder.save_pretrained(tmp_path / "a" / "b") is None
    x = torch.randn(3, 12, SAMPLES)
    for again in (load_encoder(tmp_path / "a" / "b"), Encoder.from_pretrained(str(tmp_path / "a" / "b"))):
        assert again.config == encoder.config
        assert torch.equal(again(x), load_encoder(directory)(x))
    load_encoder(tmp_path / "a" / "b", check=True)
    for name in ("config.json", "model.safetensors", "golden.safetensors"):
        assert (tmp_path / "a" / "b" / name).read_bytes() == (directory / name).read_bytes()
    ModelCard.load(tmp_path / "a" / "b" / "README.md").data.to_dict()


def test_a_card_that_is_there_is_kept_and_weights_are_replaced(directory, tmp_path):
    encoder = load_encoder(directory)
    (tmp_path / "README.md").write_text("mine")
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1)
    encoder.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert torch.equal(next(load_encoder(tmp_path).parameters()), next(encoder.parameters()))


@pytest.mark.parametrize("state", ["training", "half"])
def test_golden_features_are_of_the_saved_weights_in_whatever_state_they_are(state, tmp_path):
    run = make_run(tmp_path / "run")
    encoder = load_encoder(export(run))
    encoder.train() if state == "training" else encoder.half()
    encoder.save_pretrained(tmp_path / "a")
    assert encoder.training == (state == "training")
    assert load_encoder(tmp_path / "a", check=True).config == encoder.config


def test_an_encoder_that_was_made_without_its_dim_is_saved_with_it(tmp_path):
    encoder = small_encoder("resnet18")
    encoder.save_pretrained(tmp_path)
    assert load_encoder(tmp_path, check=True).config.dim == encoder.dim == encoder(torch.zeros(12, 1000)).shape[0]


def test_only_its_own_config_can_be_given(directory, tmp_path):
    encoder = load_encoder(directory)
    encoder.save_pretrained(tmp_path / "a", config=encoder.config)
    encoder.save_pretrained(tmp_path / "b", config=dataclasses.asdict(encoder.config))
    with pytest.raises(UserError, match="config describes the weights and cannot be set"):
        encoder.save_pretrained(tmp_path / "c", config={"rate": 500})
    with pytest.raises(TypeError, match="licence"):
        encoder.save_pretrained(tmp_path / "c", model_card_kwargs={"licence": "mit"})
    assert not (tmp_path / "c").exists()


def test_loading_is_strict_and_of_safetensors_only(directory, tmp_path):
    with pytest.raises(UserError, match="strict=False: an encoder is loaded with all of its weights or not at all"):
        Encoder.from_pretrained(directory, strict=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lead'"):
        Encoder.from_pretrained(directory, lead=3)
    with pytest.raises(UserError, match="map_location='gpu' cannot be used here"):
        Encoder.from_pretrained(directory, map_location="gpu")
    with pytest.raises(TypeError, match="pretrained_model_name_or_path must be a path or a hub id, not NoneType"):
        Encoder.from_pretrained(None)
    load_encoder(directory).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 weights are missing"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.safetensors does not exist"):
        Encoder.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(directory, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"save_directory=.*file: .* is not a folder"):
        load_encoder(directory).save_pretrained(tmp_path / "file")


# ---- the hub ----


def test_to_the_hub_and_back_it_is_the_same(directory, hub, tmp_path):
    encoder = load_encoder(directory)
    url = encoder.push_to_hub("me/ecg", commit_message="the first", model_card_kwargs={"license": "cc-by-4.0"})
    repo = hub.repos["me/ecg"]
    assert url == f"{hub.url}/me/ecg/commit/{repo['commit']}"
    assert repo["private"]
    assert sorted(repo["files"]) == ["README.md", "config.json", "golden.safetensors", "model.safetensors"]
    assert repo["files"]["model.safetensors"] == (directory / "model.safetensors").read_bytes()
    card = ModelCard(repo["files"]["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("umbra", "cc-by-4.0")
    assert card.data.pipeline_tag == "feature-extraction"
    assert 'load_encoder("me/ecg")' in card.text
    x = torch.randn(2, 12, SAMPLES)
    for again in (load_encoder("me/ecg"), Encoder.from_pretrained("me/ecg", revision=repo["commit"])):
        assert torch.equal(again(x), encoder(x))
    before = len(hub.seen)
    assert torch.equal(Encoder.from_pretrained("me/ecg", local_files_only=True)(x), encoder(x))
    assert len(hub.seen) == before


def test_a_new_version_is_fetched_and_an_old_one_by_its_revision_is_not_found(directory, hub):
    encoder = load_encoder(directory)
    encoder.push_to_hub("me/ecg")
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1)
    encoder.push_to_hub("me/ecg")
    assert torch.equal(next(load_encoder("me/ecg").parameters()), next(encoder.parameters()))
    with pytest.raises(UserError, match="downloading it from the hub failed"):
        Encoder.from_pretrained("me/ecg", revision="v2")


def test_saving_may_push_as_the_mixin_does(directory, hub, tmp_path):
    encoder = load_encoder(directory)
    encoder.save_pretrained(tmp_path / "ecg", push_to_hub=True)
    encoder.save_pretrained(tmp_path / "ecg", repo_id="me/open", push_to_hub=True, private=False)
    assert {name: repo["private"] for name, repo in hub.repos.items()} == {"me/ecg": True, "me/open": False}
    encoder.push_to_hub("me/ecg", private=False)
    assert hub.repos["me/ecg"]["private"]  # one that exists stays as it is


def test_a_private_encoder_is_not_had_without_its_token(directory, hub, tmp_path, monkeypatch):
    load_encoder(directory).push_to_hub("me/ecg")
    point_client_at(hub, monkeypatch, tmp_path / "other", token="")
    with pytest.raises(UserError, match="downloading it from the hub failed") as caught:
        load_encoder("me/ecg")
    assert "\n" not in str(caught.value)
    assert Encoder.from_pretrained("me/ecg", token=TOKEN).dim == 64


def test_token_false_sends_none(directory, hub):
    load_encoder(directory).push_to_hub("me/ecg")
    with pytest.raises(UserError, match="downloading it from the hub failed"):
        Encoder.from_pretrained("me/ecg", token=False)
    assert Encoder.from_pretrained("me/ecg", token=True).dim == 64


def test_a_token_with_a_line_break_is_not_shown(directory, hub):
    encoder = load_encoder(directory)
    with pytest.raises(UserError, match="me/ecg: the hub was not reached: Illegal header value") as caught:
        encoder.push_to_hub("me/ecg", token="hf_mine\nx")
    assert "hf_mine" not in str(caught.value)
    with pytest.raises(UserError, match="downloading it from the hub failed: Illegal header value b'Bearer") as caught:
        Encoder.from_pretrained("me/ecg", token="hf_mine\nx")
    assert "hf_mine" not in str(caught.value)


def test_what_cannot_be_loaded_is_neither_saved_nor_sent(directory, hub, tmp_path):
    encoder = load_encoder(directory)
    with pytest.raises(TypeError, match="licence"):
        encoder.push_to_hub("me/ecg", model_card_kwargs={"licence": "mit"})
    with torch.no_grad():
        next(encoder.backbone.parameters())[0] = torch.nan
    with pytest.raises(UserError, match=r"cannot be saved: 'backbone\..*' has values that are not finite"):
        encoder.push_to_hub("me/ecg")
    with pytest.raises(UserError, match="not finite"):
        encoder.save_pretrained(tmp_path / "ecg")
    assert not hub.repos
    assert not (tmp_path / "ecg").exists()


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("me/ecg", "", "me/ecg: sending to the hub needs a token: set HF_TOKEN to a token with write access"),
        ("me/ecg", "hf_wrong", "me/ecg: the hub does not let this token write there: set HF_TOKEN"),
        ("others/ecg", TOKEN, "others/ecg: the hub does not let this token write there"),
        ("a/b/c", TOKEN, "'a/b/c' is no name at the hub; it has the form owner/name"),
        ("", TOKEN, "'' is no name at the hub"),
        (None, TOKEN, "None is no name at the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(name, token, said, directory, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=said) as caught:
        load_encoder(directory).push_to_hub(name)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not hub.repos


def test_without_a_network_it_is_one_line(directory, hub, monkeypatch, tmp_path):
    hub.url = "http://127.0.0.1:9"
    point_client_at(hub, monkeypatch, tmp_path / "cache")
    with pytest.raises(UserError, match="me/ecg: the hub was not reached: ") as caught:
        load_encoder(directory).push_to_hub("me/ecg")
    assert "\n" not in str(caught.value)


def test_the_package_of_the_hub_is_loaded_for_a_hub_id_only(directory, tmp_path):
    code = f"""
import sys
from umbra import Encoder
Encoder.from_pretrained({str(directory)!r}).save_pretrained({str(tmp_path / "a")!r})
assert "huggingface_hub" not in sys.modules
sys.modules["huggingface_hub"] = None
encoder = Encoder.from_pretrained({str(directory)!r})
for call in (Encoder.from_pretrained, encoder.push_to_hub):
    try:
        call("me/ecg")
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the hub needs a package: pip install 'umbra[hub]'") == 2
