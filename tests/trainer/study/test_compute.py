"""Operations of pre-training beside the reference, and methods that are run again with as many."""

import json

import numpy as np
import pytest

from tests.support.handmade import ENCODER, SCALING, make_shards
from tests.support.study import predict, scores, study_of
from trainer.config import PretrainConfig
from trainer.study import trial as runs
from trainer.study.cells import base_of, run_directory
from trainer.study.comparing import compare
from trainer.study.compute import ecg_flops, pretraining
from trainer.study.config import Primary, keep_config
from trainer.study.report import markdown
from trainer.study.share import in_turn
from umbra.config import dump, load
from umbra.errors import UserError

NARROW = ["encoder.args.width=8", "projector.hidden=8", "masker.width=8", "epochs=60"]


def epochs_of(command):
    """The epochs of a command that pre-trains: the last word of that key counts."""
    return float([w for w in map(str, command) if w.startswith("epochs=")][-1].removeprefix("epochs="))


def test_epochs_are_scaled_to_the_operations_of_the_reference(tmp_path):
    """By hand where no masker plays: two views forward and back are 6 passes; four hard pairs, 2 each, come on top."""
    config = study_of(
        tmp_path,
        ["block_mask_both", "hard_views", "twice"],
        variants={"twice": ["cmsc", "epochs=120"]},
        reference="block_mask_both",
        equal_compute=["hard_views", "twice"],
        pretrain=NARROW,
    )
    base = base_of(config, 1)
    make_shards(base / "data", {"train": ["SR"] * 4})
    command = {method: runs.pretrain_command(config, method, 0, base) for method in config.compared}
    assert epochs_of(command["hard_views"]) == 60
    assert epochs_of(command["hard_views_equal_compute"]) == pytest.approx(60 * 6 / 14, abs=1e-3)
    assert epochs_of(command["twice_equal_compute"]) == 60
    assert "method=hard_views_equal_compute" in command["hard_views_equal_compute"]
    assert f"run={base / 'runs' / 'hard_views_equal_compute-seed0'}" in command["hard_views_equal_compute"]


def test_a_method_that_is_run_again_is_a_method_of_its_own(tmp_path):
    primary = Primary(["rhythm"], [1.0], ["none_equal_compute"])
    config = study_of(tmp_path, rotations=[0], equal_compute=["none"], primary=primary)
    config.check()
    assert [t.method for t in in_turn(config)] == ["adversarial", "none", "none_equal_compute"]
    label = [0, 1] * 20
    for number, method in enumerate(config.compared):
        predict(config, method, 0, scores(np.random.default_rng(number), np.array(label), 0.5), label, range(40))
    rows, differences = compare(config)
    assert [row["method"] for row in rows] == config.compared
    assert [(d["other"], d["primary"]) for d in differences] == [("none", False), ("none_equal_compute", True)]


def test_what_pretraining_took_stands_beside_the_reference(tmp_path):
    """A method of half the steps has half the operations; seconds are those of its own steps."""
    config = study_of(tmp_path, ["none", "cmsc", "random"], reference="none", rotations=[0, 1], pretrain=NARROW)
    for method, steps in (("none", (40, 40)), ("cmsc", (40, 80))):
        cfg = load(PretrainConfig, f"configs/pretrain/{method}.yaml", [*NARROW, "batch.global=16"])
        for rotation in (0, 1):
            place = run_directory(base_of(config, rotation), method, 0)
            place.mkdir(parents=True)
            (place / "config.yaml").write_text(dump(cfg))
            record = {"encoder": ENCODER, "scaling": SCALING, "fingerprint": "", "key_id": "", "steps": steps[rotation]}
            (place / "run.json").write_text(json.dumps(record))
    noted = [
        {"step": f"{kind}/{r}/{m}/0", "command": "x", "seconds": s}
        for kind, r, m, s in (("pretrain", 0, "cmsc", 3.0), ("pretrain", 1, "cmsc", 5.0), ("export", 0, "cmsc", 90.0))
    ]
    same, halves = pretraining(config, noted)
    assert same == {"method": "none", "runs": 2, "ecgs": 640.0, "flops": same["flops"], "of_reference": 1.0}
    assert same["flops"] == 640 * ecg_flops(load(PretrainConfig, None, ["game.enabled=false", *NARROW]), 12, 256, 100)
    assert (halves["ecgs"], halves["seconds"]) == (960.0, 4.0)
    assert halves["of_reference"] == pytest.approx(1.5 / 2, rel=0.05), "views of half the length"
    text = markdown(config, [], [], noted, [], [same, halves])
    assert f"| cmsc | 2 | 960 | {halves['flops'] / 1e12:.4g} | {halves['of_reference']:.2f} | 4 |" in text
    assert pretraining(study_of(tmp_path / "none", ["none"]), []) == []


def test_a_method_may_run_at_equal_compute_alone(tmp_path):
    config = study_of(tmp_path, ["adversarial", "random"], rotations=[0], equal_compute=["cmsc", "twice"])
    config.variants = {"twice": ["none", "epochs=2"]}
    config.check()
    assert [t.method for t in in_turn(config)] == ["adversarial", "cmsc_equal_compute", "twice_equal_compute", "random"]
    config.variants = {"twice": ["none", "epochs=-2"]}
    with pytest.raises(UserError, match="method twice: epochs=-2"):
        config.check()


def test_a_yaml_of_ones_own_may_run_at_equal_compute(tmp_path, monkeypatch):
    own = tmp_path / "configs" / "pretrain" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("game: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    study_of(tmp_path, ["adversarial"], equal_compute=["mine"]).check()
    study_of(tmp_path, ["adversarial"], primary=Primary(["rhythm"], [1.0], ["mine"])).check()


def test_the_reference_of_equal_compute_stays(tmp_path):
    keep_config(study_of(tmp_path), tmp_path)
    keep_config(study_of(tmp_path, equal_compute=["none"]), tmp_path)
    with pytest.raises(UserError, match="another 'reference'"):
        keep_config(study_of(tmp_path, equal_compute=["adversarial"], reference="none"), tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"equal_compute": ["cmcs"]}, "equal_compute has cmcs; there are: 3kg, block_mask, "),
        ({"equal_compute": ["random"]}, "equal_compute has random; there are: 3kg, "),
        ({"equal_compute": ["adversarial"]}, "equal_compute has adversarial; there are: 3kg, "),
        ({"equal_compute": ["none", "none"]}, "equal_compute has none twice"),
        (
            {"equal_compute": ["none"], "pretrain": ["steps=9"]},
            "equal_compute scales epochs, but adversarial has",
        ),
        ({"equal_compute": ["none"], "reference": "random"}, "the reference random is not pre-trained"),
        ({"variants": {"a_equal_compute": ["none"]}}, "a_equal_compute: names that end with _equal_compute are for"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, keys, said):
    with pytest.raises(UserError, match=said):
        study_of(tmp_path, ["adversarial", "none", "random"], **keys).check()
