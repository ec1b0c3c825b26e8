import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.handmade import ARGS, ENCODER, SAMPLES, SCALING, backbone, make_run, make_shards
from trainer import export as exporting
from trainer.data.shards import Shards
from trainer.export import drawn, export, main
from trainer.game.batchnorm import batch_norms
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError
from umbra.hub import load_encoder


def test_exports_the_newest_committed_step_with_its_scaling(tmp_path):
    run = make_run(tmp_path / "run", steps=[3, 7, 10], uncommitted=[12])
    encoder = load_encoder(export(run))
    x = torch.randn(2, 12, SAMPLES)
    expected = backbone(10).eval()(x / torch.tensor(SCALING["std_mv"])[:, None])
    torch.testing.assert_close(encoder(x), expected)
    assert encoder.config.training["step"] == 10
    assert encoder.config.dim == expected.shape[1]


@pytest.mark.parametrize("pair", [None, {"kind": "crops", "seconds": 1.5}])
def test_an_encoder_says_how_views_were_cut_and_takes_whole_windows(pair, tmp_path):
    encoder = load_encoder(export(make_run(tmp_path / "run", pair=pair)), check=True)
    assert encoder.config.training.get("pair") == pair
    assert encoder.config.samples == SAMPLES


def test_exports_the_step_that_is_asked_for(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    main([f"run={run}", f"output={tmp_path / 'old'}", "step=3"])
    encoder = load_encoder(tmp_path / "old")
    x = torch.randn(1, 12, SAMPLES)
    torch.testing.assert_close(encoder.backbone(x), backbone(3).eval()(x))
    assert "step 3, chosen by its number" in (tmp_path / "old" / "README.md").read_text()


def test_writes_what_the_directory_must_hold_and_replaces_an_older_one(tmp_path):
    run = make_run(tmp_path / "run")
    output = export(run, step="3")
    assert export(run) == output
    assert load_encoder(output).config.training["step"] == 7
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        "config.json",
        "golden.safetensors",
        "model.safetensors",
    ]
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "encoder", "run.json"]
    config = json.loads((output / "config.json").read_text())
    assert config["units"] == "mV"
    assert config["data"] == {"fingerprint": "f00d", "key_id": "public", "samples": 640, "patients": 320}
    card = (output / "README.md").read_text()
    for said in [
        "step 7, the last committed step",
        "640 windows of 320 patients",
        "adversarial",
        "load_encoder",
        "Limits",
    ]:
        assert said in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": []}, "no committed checkpoint"),
        ({"encoder": ENCODER | {"leads": ["I"]}}, "shape"),
    ],
)
def test_a_run_that_cannot_be_exported_is_one_clear_line(tmp_path, changes, said):
    steps = changes.pop("steps", [3])
    run = make_run(tmp_path / "run", steps=steps, **changes)
    with pytest.raises(UserError, match=said) as caught:
        export(run)
    assert "\n" not in str(caught.value)
    assert not (run / "encoder").exists()


def test_missing_run_json_and_unknown_step_are_said(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        export(tmp_path)
    with pytest.raises(UserError, match="it has 3, 7"):
        export(make_run(tmp_path / "run"), step="5")
    with pytest.raises(UserError, match="run=RUN_DIR"):
        main([])


def tree(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize("place", ["run", ".", "run/checkpoints", "thesis", "card", "other", "afile", "afile/below"])
def test_a_folder_of_anything_else_is_refused_and_left_as_it_was(tmp_path, place):
    run = make_run(tmp_path / "run")
    export(run, tmp_path / "thesis")
    (tmp_path / "thesis" / "chapter.tex").write_text("two years")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "other" / "model.safetensors").write_text("of another model")
    (tmp_path / "afile").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"output=.*choose another") as caught:
        export(run, tmp_path / place)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled_and_a_link_is_followed(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for step in ("3", "7"):
        export(run, tmp_path / "link", step)
        assert load_encoder(tmp_path / "empty").config.training["step"] == int(step)
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "link", "run"]


def test_a_failed_export_leaves_the_older_encoder(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    output = export(run, step="3")
    before = tree(tmp_path)
    monkeypatch.setattr("trainer.export.model_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run)
    assert tree(tmp_path) == before
    assert load_encoder(output).config.training["step"] == 3


def test_the_files_have_the_mode_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        output = export(make_run(tmp_path / "run"))
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in output.iterdir()} == {0o640}
    assert output.stat().st_mode & 0o777 == 0o750


# --- batch norm ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "s"
    return make_shards(root, {"train": ["SR", "AFIB", "STACH"] * 16, "val": ["AFIB"] * 8}, shards_of_train=4)


@pytest.mark.parametrize("upload", [False, True])
def test_wandb_gets_the_encoder_only_if_the_run_says_so(upload, tmp_path, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(exporting, "Mirror", lambda run, config, info: sent.append((run, info)) or Sent(sent))
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"wandb: {{upload_encoder: {str(upload).lower()}}}\n")
    main([f"run={run}"])
    assert "warning" not in capsys.readouterr().out
    expected = [(run, {"wandb_id": "x"}), (run / "encoder", "encoder-x", "step-7"), "closed"]
    assert sent == (expected if upload else [])


def test_a_config_that_cannot_be_read_sends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "Mirror", None)
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("wandb: {upload_encoder: perhaps}\n")
    main([f"run={run}"])
    assert "warning: nothing is sent to W&B: " in capsys.readouterr().out
    assert (run / "encoder" / "config.json").is_file()


class Sent:
    """Notes what a mirror is asked to send."""

    def __init__(self, sent):
        self.sent = sent

    def encoder(self, folder, name, alias, about):
        assert about["training"]["step"] == 7
        self.sent.append((folder, name, alias))

    def close(self, summary):
        self.sent.append("closed")


@pytest.fixture
def batch_run(shards, tmp_path):
    """A run with batch norm, whose running statistics are those of nothing, with what its checkpoint knows."""
    args = ARGS | {"norm": "batch"}
    fingerprint = Shards(shards, "train").manifest.fingerprint
    scaling = {"mode": "fixed", "mean_mv": [0.1 * n for n in range(12)], "std_mv": [0.5] * 12}
    run = make_run(tmp_path / "run", [3], encoder=ENCODER | {"args": args}, fingerprint=fingerprint, scaling=scaling)
    torch.manual_seed(0)
    weights = build_encoder("resnet18", 12, SAMPLES, args).state_dict()
    save_file({f"backbone.{k}": v for k, v in weights.items()}, run / "checkpoints" / "step-3" / "weights.safetensors")
    keep(run, path=str(shards), exclude=["train-000001.tar"])
    return run


def keep(run, **data):
    (run / "checkpoints" / "step-3" / "state.json").write_text(
        json.dumps({"step": 3, "config": {"data": data}, "fingerprint": "f00d", "world": 1})
    )


def test_the_first_layers_statistics_are_those_of_the_scaled_training_ecgs_by_numpy(batch_run, shards, monkeypatch):
    """All but those of the shard that the run left out; in passes of 10, which the first layer must not notice."""
    monkeypatch.setattr(exporting, "PASS", 10)
    encoder = load_encoder(export(batch_run))
    train = Shards(shards, "train")
    mv = train.read_mv(np.r_[0:12, 24:48]).astype(np.float64)
    x = (mv - 0.1 * np.arange(12)[:, None]) / 0.5
    kernel = encoder.backbone.stem[0].weight.detach().double().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (3, 3))), 7, axis=2)[:, :, ::2]
    h = np.einsum("nltk,clk->cnt", windows, kernel).reshape(len(kernel), -1)
    norm = encoder.backbone.stem[1]
    np.testing.assert_allclose(norm.running_mean, h.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, h.var(1), rtol=1e-5)
    assert encoder.config.training["batch_norm"] == {
        "statistics": "clean", "ecgs": 36, "fingerprint": train.manifest.fingerprint
    }  # fmt: skip
    assert "mean and variance of 36 training ECGs, none masked" in (batch_run / "encoder" / "README.md").read_text()


def test_with_its_estimated_statistics_each_layer_sends_on_mean_0_and_deviation_1(batch_run, shards):
    """In eval mode, on the ECGs of one pass: all layers together, as the user will run them."""
    encoder, seen = load_encoder(export(batch_run)), []
    for norm in batch_norms(encoder):
        norm.register_forward_hook(lambda norm, given, out: seen.append(out.detach()))
    encoder(torch.from_numpy(Shards(shards, "train").read_mv(np.r_[0:12, 24:48])))
    assert len(seen) == 20
    for out in seen:
        out = out.flatten(2)
        assert out.mean((0, 2)).abs().max() < 1e-4
        assert (out.var((0, 2), correction=0) - 1).abs().max() < 1e-3


def test_the_same_export_gives_the_same_bytes_and_the_shards_may_have_moved(batch_run, shards, tmp_path):
    first = (export(batch_run) / "model.safetensors").read_bytes()
    moved = shutil.copytree(shards, tmp_path / "moved")
    keep(batch_run, path=str(tmp_path / "gone"), exclude=["train-000001.tar"])
    (moved / "train-000001.tar").unlink()
    assert (export(batch_run, data=str(moved)) / "model.safetensors").read_bytes() == first


def test_running_statistics_are_kept_when_asked_for(batch_run):
    keep(batch_run, path="gone")
    main([f"run={batch_run}", "statistics=running"])
    given = load_file(batch_run / "checkpoints" / "step-3" / "weights.safetensors")
    written = load_file(batch_run / "encoder" / "model.safetensors")
    assert all(torch.equal(written[k], v) for k, v in given.items())
    assert "the running mean and variance of training" in (batch_run / "encoder" / "README.md").read_text()


def test_group_norm_needs_no_shards_and_says_nothing_of_batch_norm(tmp_path):
    output = export(make_run(tmp_path / "run"))
    assert "batch norm" not in (output / "README.md").read_text()
    assert "batch_norm" not in load_encoder(output).config.training
    for words in ({"data": "/nope"}, {"statistics": "running"}):
        with pytest.raises(UserError, match="has no batch norm: leave out data= and statistics="):
            export(tmp_path / "run", **words)


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("gone", [], "gone.*give data=FOLDER with the run's shards, or statistics=running"),
        ("https://host/s", [], "https://host/s is not on this machine: give data=FOLDER"),
        ("other", [], "other now contains another data set; give data=FOLDER"),
        ("other", ["data=longer"], "the encoder needs samples 256, .*longer has 128; give data=FOLDER"),
        ("gone", ["statistics=clear"], "statistics=clear is unknown; use clean, running"),
    ],
)
def test_statistics_that_cannot_be_had_are_one_line(path, words, said, batch_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shards(tmp_path / "other", {"train": ["SR"] * 4}, seed=5)
    monkeypatch.setattr("tests.support.handmade.SAMPLES", 128)
    make_shards(tmp_path / "longer", {"train": ["SR"] * 4}, seed=5)
    keep(batch_run, path=path)
    with pytest.raises(UserError, match=said) as caught:
        main([f"run={batch_run}", *words])
    assert "\n" not in str(caught.value)
    assert not (batch_run / "encoder").exists()


def test_ecgs_of_other_shards_are_taken_where_they_are_named(batch_run, tmp_path):
    other = make_shards(tmp_path / "other", {"train": ["SR"] * 4}, seed=5)
    config = load_encoder(export(batch_run, data=str(other))).config
    assert config.training["batch_norm"]["fingerprint"] == Shards(other, "train").manifest.fingerprint
    assert config.training["batch_norm"]["fingerprint"] != config.data["fingerprint"]


def test_few_are_drawn_at_even_distances_over_all_shards_that_were_not_left_out(shards):
    train = Shards(shards, "train")
    assert drawn(train, [], 100).tolist() == list(range(48))
    assert drawn(train, [], 6).tolist() == [0, 8, 16, 24, 32, 40]
    assert drawn(train, ["train-000000.tar", "train-000002.tar"], 5).tolist() == [12, 16, 21, 38, 43]
