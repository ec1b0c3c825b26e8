"""`init=ENCODER`: a run that goes on from an encoder's weights and scaling, and refuses one that does not fit."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.support.handmade import ARGS, SCALING, make_run, make_shards
from tests.support.launch import launch
from tests.support.pretrain_words import SMALL, called, losses
from trainer import distributed, pretrain
from trainer.data.shards import Shards
from trainer.evaluate.mask_lift import masks_of_run
from trainer.export import export
from trainer.run import assemble
from trainer.run.record import new_record, write_record
from umbra.directory import save_weights
from umbra.encoders.encoder import EncoderConfig
from umbra.hub import initialise, load_encoder

KINDS = ["SR", "AFIB", "STACH"]
SAME = [f"encoder.args={{{', '.join(f'{key}: {value}' for key, value in ARGS.items())}}}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with shards and an encoder whose scaling is not that of the shards."""
    folder = tmp_path_factory.mktemp("init")
    make_shards(folder / "data", {"train": KINDS * 16, "val": KINDS * 4})
    export(make_run(folder / "before", scaling=SCALING | {"std_mv": [0.25] * 12}), folder / "encoder")
    return folder


def words(place, run, *more, encoder="encoder"):
    given = [f"data.path={place / 'data'}", f"run={run}", *SMALL, *SAME, f"init={place / encoder}", *more]
    return ["configs/pretrain/adversarial.yaml", *given]


def test_the_backbone_is_the_encoders_and_all_else_is_new(place, tmp_path):
    plan = assemble.plan_run(pretrain.read_config(words(place, tmp_path / "run")))
    fresh = assemble.plan_run(pretrain.read_config(words(place, tmp_path / "run", "init=")))
    encoder = load_encoder(place / "encoder")
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(plan.encoder.backbone.state_dict()[name], value)
    assert not torch.equal(next(fresh.encoder.backbone.parameters()), next(plan.encoder.backbone.parameters()))
    for ours, theirs in ((plan.encoder.projector, fresh.encoder.projector), (plan.masker, fresh.masker)):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, two)
    assert "begins with the weights and the scaling of" in assemble.describe(plan)
    assert "(adversarial, step 7)" in assemble.describe(plan)
    assert "begins with" not in assemble.describe(fresh)


def test_batch_norm_brings_its_running_statistics(place, tmp_path):
    encoder = load_encoder(place / "encoder")
    config = json.loads((place / "encoder" / "config.json").read_text())
    config["architecture"]["args"]["norm"] = "batch"
    other = initialise(EncoderConfig(**config), seed=1)
    state = {k: v + 3 if k.endswith("running_mean") else v for k, v in other.state_dict().items()}
    (tmp_path / "bn").mkdir()
    save_weights(tmp_path / "bn" / "model.safetensors", state)
    (tmp_path / "bn" / "config.json").write_text(json.dumps(config))
    given = words(place, tmp_path / "run", f"init={tmp_path / 'bn'}", "encoder.args.norm=batch")
    plan = assemble.plan_run(pretrain.read_config(given))
    means = [v for k, v in plan.encoder.backbone.state_dict().items() if k.endswith("running_mean")]
    assert len(means) == 20
    assert all((mean == 3).all() for mean in means)
    assert encoder.dim == other.dim


MISTAKES = [
    (["init=/no/where"], "init=/no/where: /no/where is neither an encoder directory nor a hub id"),
    (["encoder.args.width=32"], "the encoder's architecture is not this run's: give encoder.args.width=16"),
    (["encoder.args={}"], "give encoder.args.width=16 encoder.args.embedding=64 encoder.args.groups=4"),
    (
        ["encoder.name=vit_s", "encoder.args={}"],
        "the encoder is a resnet18, this run trains a vit_s: give",
    ),
    (["scaling=record"], "the encoder has scaling=fixed, this run scaling=record: give scaling=fixed"),
]


@pytest.mark.parametrize(("more", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_an_encoder_that_does_not_fit_is_one_line(more, said, place, tmp_path, monkeypatch, capsys):
    code, output, error = called(words(place, tmp_path / "run", *more, "--dry-run"), monkeypatch, capsys)
    assert (code, output) == (2, "")
    assert said in error
    assert error.startswith("error: init=")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rate": 500.0},
            "the encoder has rate 500 Hz, the data have 100 Hz: build the shards with the",
        ),
        (
            {"leads": ["II", "I", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]},
            "the encoder has leads II, I, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6, the data have I, II, III",
        ),
    ],
)
def test_an_encoder_of_other_leads_or_rate_is_refused(change, said, place, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(place / "encoder", tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps(config))
    code, _, error = called(words(place, tmp_path / "run", f"init={other}", "--dry-run"), monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert said in error


def test_defaults_that_are_written_out_are_the_same_architecture_and_a_length_may_differ(place, tmp_path):
    other = shutil.copytree(place / "encoder", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"samples": 1000}))
    more = [f"init={other}", "encoder.args.norm=group", "encoder.args.activation=relu"]
    assert assemble.plan_run(pretrain.read_config(words(place, tmp_path / "run", *more))).init


@pytest.fixture
def begun(place, tmp_path):
    """The words of a run with a checkpoint at step 3, and a copy of its encoder that may be lost."""
    shutil.copytree(place / "encoder", tmp_path / "encoder")
    given = words(place, tmp_path / "run", f"init={tmp_path / 'encoder'}")
    plan = assemble.plan_run(pretrain.read_config(given))
    world = distributed.World(0, 1, torch.device("cpu"))
    state = assemble.checkpoint_state(plan.cfg, world, plan.order, plan.train, plan.init)
    step = tmp_path / "run" / "checkpoints" / "step-3"
    step.mkdir(parents=True)
    weights = {**plan.encoder.state_dict(), **{f"masker.{k}": v for k, v in plan.masker.state_dict().items()}}
    save_weights(step / "weights.safetensors", weights)
    (step / "state.json").write_text(json.dumps({"step": 3, **state}))
    (step / "COMMITTED").touch()
    write_record(plan.cfg, new_record(plan.cfg, plan.train, plan.total, False, 1, plan.init), "interrupted")
    return given, tmp_path


def test_a_resumed_run_needs_its_encoder_no_more_and_refuses_another(begun, monkeypatch, capsys):
    given, folder = begun
    shutil.rmtree(folder / "encoder")
    plan = assemble.plan_run(pretrain.read_config(given))
    assert plan.resumed[0] == 3
    assert plan.init["scaling"]["std_mv"] == [0.25] * 12
    assert "begins with" not in assemble.describe(plan)
    for other, now in (("elsewhere", '"elsewhere"'), ("", '""')):
        code, _, error = called([*given, f"init={other}", "--dry-run"], monkeypatch, capsys)
        assert (code, error.count("\n")) == (2, 1)
        assert f"init: {json.dumps(str(folder / 'encoder'))}, now {now}: resume with the old values" in error


def test_the_record_the_export_and_the_card_name_the_encoder_before(begun):
    _, folder = begun
    before = load_encoder(folder / "encoder").config
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["scaling"] == record["init"]["scaling"] == before.scaling
    output = export(folder / "run")
    config = load_encoder(output).config
    assert config.scaling == before.scaling
    assert config.training["init"]["training"] == before.training
    assert config.training["init"]["data"] == before.data
    assert str(folder) not in (output / "config.json").read_text() + (output / "README.md").read_text()
    assert "| went on from | step 7 of `adversarial` (weights `" in (output / "README.md").read_text()
    x = torch.randn(2, 12, 256)
    assert torch.equal(load_encoder(output)(x), load_encoder(folder / "encoder")(x))


def test_masks_of_the_run_are_those_of_its_scaling_and_not_of_the_datas(begun):
    _, folder = begun
    run = folder / "run"
    settings = pretrain.read_config([str(run / "config.yaml")])
    data = Shards(settings.data.path, "train")
    ecgs = data.read_mv(np.arange(4))
    ours = masks_of_run(run, settings, data, ecgs)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"init": None}))
    halved = masks_of_run(run, settings, data, ecgs * 2)  # the data's deviation is twice the encoder's
    assert (ours == halved).all()


@pytest.mark.full
def test_a_run_from_an_encoder_stops_goes_on_without_it_and_ends_the_same(place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "encoder")
    common = ["steps=6", "checkpoint.every=3", f"init={tmp_path / 'encoder'}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run, more in ((whole, []), (cut, ["max_minutes=1e-9"])):
        code, output = launch(["trainer/pretrain.py", *words(place, run, *common, *more)])
        assert code == 0, output[-3000:]
    shutil.rmtree(tmp_path / "encoder")
    code, output = launch(["trainer/pretrain.py", *words(place, cut, *common)])
    assert code == 0, output[-3000:]
    assert losses(cut) == losses(whole)
    assert json.loads((cut / "run.json").read_text())["init"] == json.loads((whole / "run.json").read_text())["init"]
