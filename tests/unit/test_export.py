import json
import os

import pytest
import torch
from handmade import ENCODER, SAMPLES, SCALING, backbone, make_run

from sharding.config import UserError
from trainer.export import export, main
from trainer.hub import load_encoder


def test_exports_the_newest_committed_step_with_its_scaling(tmp_path):
    run = make_run(tmp_path / "run", steps=[3, 7, 10], uncommitted=[12])
    encoder = load_encoder(export(run))
    x = torch.randn(2, 12, SAMPLES)
    expected = backbone(10).eval()(x / torch.tensor(SCALING["std_mv"])[:, None])
    torch.testing.assert_close(encoder(x), expected)
    assert encoder.config.training["step"] == 10
    assert encoder.config.dim == expected.shape[1]


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
    assert sorted(p.name for p in output.iterdir()) == ["README.md", "config.json", "model.safetensors"]
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
    monkeypatch.setattr("trainer.export.model_card", lambda config: 1 / 0)
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
