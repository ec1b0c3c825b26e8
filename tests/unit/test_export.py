import json

import pytest
import torch

from sharding.config import UserError
from tests.unit.handmade import ENCODER, SAMPLES, SCALING, backbone, make_run
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
    output = export(run)
    (output / "stale").touch()
    export(run)
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
