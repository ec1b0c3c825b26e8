import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.saved_engine import Engine, saver
from trainer.config import PretrainConfig
from trainer.run import checkpoint
from umbra.config import as_dict, load
from umbra.errors import UserError


def state(*words: str, method: str = "none", world: int = 2, fingerprint: str = "f00d") -> dict:
    given = [f"method={method}", "precision=fp32", *words]
    config = as_dict(load(PretrainConfig, f"configs/pretrain/{method}.yaml", given))
    return {"config": config, "fingerprint": fingerprint, "world": world}


def saved(run, step: int = 5, keep: int = 2, **changes):
    return saver(run, keep).save(step, {"encoder": Engine(step), "masker": Engine(-step)}, state(**changes))


def test_what_is_saved_is_loaded(tmp_path):
    path, engine = saved(tmp_path), Engine(0)
    assert checkpoint.load(path, {"encoder": engine}, state()) == 5
    assert (engine.module.weight == 5).all()
    weights = load_file(path / "weights.safetensors")
    assert (weights["weight"] == 5).all()
    assert (weights["masker.weight"] == -5).all()
    assert (path / "weights.safetensors").stat().st_mode & 0o044


def test_keys_that_an_earlier_version_did_not_have_have_their_defaults(tmp_path):
    path = saved(tmp_path)
    content = json.loads((path / "state.json").read_text())
    del content["config"]["optim"]["schedule"], content["config"]["optim"]["decay"]
    (path / "state.json").write_text(json.dumps(content))
    assert checkpoint.load(path, {"encoder": Engine(0)}, state()) == 5
    with pytest.raises(UserError, match=r"optim\.schedule: \"cosine\", now \"wsd\""):
        checkpoint.load(path, {"encoder": Engine(0)}, state("optim.schedule=wsd"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (state(method="3kg"), ["views.first: [], now [{"]),
        (state("precision=bf16"), ['precision: "fp32", now "bf16"']),
        (state("game.enabled=true"), ["game.enabled: false, now true"]),
        (state("encoder.args.width=8"), ["encoder.args.width: not set, now 8"]),
        (state("encoder.name=resnet34"), ['encoder.name: "resnet18", now "resnet34"']),
        (state("projector.out=3"), ["projector.out: 128, now 3"]),
        (state("temperature=0.2"), ["temperature: 0.1, now 0.2"]),
        (state("optim.masker.lr=1"), ["optim.masker.lr: 0.0001, now 1.0"]),
        (state("scaling=record"), ['scaling: "fixed", now "record"']),
        (state("batch.global=8", "seed=3"), ["seed: 0, now 3; batch.global: 256, now 8"]),
        (state("zero=1"), ["zero: 0, now 1"]),
        (state(fingerprint="beef"), ['fingerprint: "f00d", now "beef"']),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_a_run_goes_on_only_as_it_began(tmp_path, other, said):
    path, engine = saved(tmp_path), Engine(0)
    with pytest.raises(UserError) as error:
        checkpoint.load(path, {"encoder": engine}, other)
    assert all(words in str(error.value) for words in said), str(error.value)
    assert "\n" not in str(error.value)
    assert (engine.module.weight == 0).all()


def test_places_logs_and_lengths_may_change(tmp_path):
    words = [
        "run=elsewhere",
        "method=renamed",
        "data.path=moved",
        "log.every=1",
        "checkpoint.keep=9",
        "max_minutes=3",
        "wandb.mode=online",
        "batch.device=4",
        "compile=true",
    ]
    path = saved(tmp_path)
    assert (
        checkpoint.load(path, {"encoder": Engine(0)}, state(*words, "steps=9", "epochs=2", "resume=never", world=4))
        == 5
    )


def test_a_checkpoint_of_before_that_kept_auto_says_nothing_of_the_precision():
    for now in ("fp32", "bf16"):
        assert checkpoint.changes(state("precision=auto"), state(f"precision={now}")) == []


def test_the_order_of_a_views_arguments_is_no_change():
    first, second = state(), state()
    first["config"]["views"]["first"] = [{"name": "vcg", "max_angle": 45}]
    second["config"]["views"]["first"] = [{"max_angle": 45, "name": "vcg"}]
    assert checkpoint.changes(first, second) == []


def test_old_checkpoints_are_said(tmp_path):
    path = saver(tmp_path).save(1, {}, state())
    content = json.loads((path / "state.json").read_text())
    del content["config"]
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="earlier version"):
        checkpoint.load(path, {}, state())


@pytest.mark.parametrize(("words", "cut"), [(["zero=1"], True), (["zero=0"], False)])
def test_players_get_the_weights_where_the_partitions_are_cut_anew(words, cut, tmp_path):
    path = saved_as(tmp_path, state(*words))
    players = {name: nn.Linear(2, 2) for name in ("encoder", "masker")}
    before = players["encoder"].weight.clone()
    assert checkpoint.prepare(path, players, state(*words, world=2)) is False
    assert torch.equal(players["encoder"].weight, before)
    assert checkpoint.prepare(path, players, state(*words, world=1)) is cut
    if cut:
        assert [(player.weight == value).all().item() for player, value in zip(players.values(), (5, -5))] == [True] * 2
    with pytest.raises(UserError, match="zero: "):
        checkpoint.prepare(path, players, state("zero=3", world=1))


def test_partitions_that_are_missing_or_of_another_network_are_one_line(tmp_path):
    path = saved_as(tmp_path, state("zero=1"))
    with pytest.raises(UserError, match=r"encoder is damaged .*zero_pp_rank_0.*: delete") as error:
        checkpoint.load(path, {"encoder": Engine(0)}, state("zero=1", world=1))
    assert error.value.alone
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged .*: delete"):
        checkpoint.prepare(path, {"encoder": nn.Linear(3, 2)}, state("zero=1", world=1))


def saved_as(run, content):
    return saver(run).save(5, {"encoder": Engine(5), "masker": Engine(-5)}, content)
