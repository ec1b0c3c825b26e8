import dataclasses
import math
import types

import pytest
import torch

from tests.support.handmade import make_shards
from tests.support.players import PlainEngine
from trainer import pretrain
from trainer.data.shards import Shards
from trainer.game.game import Game, GameConfig, Pair
from trainer.game.losses import nt_xent
from trainer.game.players import ContrastiveEncoder, make_players
from trainer.game.temperature import Temperature
from trainer.run.engines import _groups
from trainer.run.pairs import make_pair
from trainer.views import Key, Views
from trainer.views.pairing import Pairing
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError


def recogniser(start: float | None) -> ContrastiveEncoder:
    torch.manual_seed(0)
    temperature = None if start is None else Temperature(start)
    return ContrastiveEncoder(torch.nn.Flatten(), torch.nn.Linear(24, 5), temperature).double()


def pair() -> Pair:
    x, v = torch.randn(2, 6, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Pair(x, v, Key(0, 0, torch.arange(6)))


def test_the_learned_temperature_takes_the_place_of_the_fixed_one_and_has_its_true_gradient():
    module, given = recogniser(0.2), pair()
    game = Game(PlainEngine(module), None, GameConfig(enabled=False), 99.0)
    figures, _ = game.step([given], 0)
    scale = torch.tensor([-math.log(0.2)], dtype=torch.float64, requires_grad=True)
    fixed = recogniser(None)
    loss, _ = nt_xent(fixed(given.x), fixed(given.v), (-scale).exp()[0])
    assert figures["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    assert module.temperature.log_scale.grad.item() == pytest.approx(scale.grad.item(), rel=1e-6)
    assert module.temperature.value.item() == pytest.approx(0.2)


@pytest.mark.parametrize(("start", "sign"), [(0.01, 1), (1.0, -1)])
def test_it_stays_within_its_bounds_and_comes_back(start, sign):
    temperature = Temperature(start)
    optimiser = torch.optim.SGD(temperature.parameters(), lr=0.1)
    for direction in (sign, sign, -sign):  # outward twice, then inward
        optimiser.zero_grad()
        (direction * temperature()).backward()
        before = temperature.log_scale.item()
        optimiser.step()
        assert (temperature.log_scale.item() == before) == (direction == sign)
    temperature.log_scale.data += 5 * sign
    assert temperature().item() == pytest.approx(start)


def test_weight_decay_leaves_it_alone():
    module = recogniser(0.2)
    decayed, free = _groups(module)
    assert [p is module.temperature.log_scale for p in free["params"]] == [True]
    assert free["weight_decay"] == 0
    assert len(decayed["params"]) == 2
    assert len(_groups(recogniser(None))) == 1


def test_only_a_config_that_asks_for_it_has_one(tmp_path):
    shards = make_shards(tmp_path / "s", {"train": ["SR"] * 16})
    words = [f"data.path={shards}", "batch.global=16"]
    train = Shards(shards, "train")
    assert make_players(pretrain.read_config(words), train)[0].temperature is None
    encoder, _ = make_players(pretrain.read_config([*words, "learn_temperature=true"]), train)
    assert encoder.temperature().item() == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"temperature=2: a learned temperature must start between 0.01 and 1"):
        pretrain.read_config([*words, "learn_temperature=true", "temperature=2"])


def test_the_game_takes_no_ecg_of_one_patient_for_a_negative():
    module, given, patients = recogniser(None), pair(), torch.tensor([0, 0, 1, 2, 2, 2])
    game = Game(PlainEngine(module), None, GameConfig(enabled=False), 0.3)
    for who in (None, patients):
        wanted, _ = nt_xent(module(given.x), module(given.v), 0.3, who)
        figures, _ = game.step([dataclasses.replace(given, patients=who)], 0)
        assert figures["loss"].item() == pytest.approx(wanted.item())
    assert wanted < nt_xent(module(given.x), module(given.v), 0.3)[0] - 0.01


def test_a_pair_knows_its_patients(tmp_path):
    """By row of the table, in training and held-out splits alike."""
    shards = make_shards(tmp_path / "s", {"train": ["SR"] * 6, "val": ["AFIB"] * 4})
    val = Shards(shards, "val")
    everyone = val.patients()
    assert (everyone[val.rows.start :] == val.table().column("patient").to_numpy()).all()
    assert len(everyone) == 10
    run = types.SimpleNamespace(
        train=val,
        scaling=Scaling([0.0] * 12, [0.5] * 12),
        first=Views([]),
        second=Views([]),
        pairing=Pairing("same", val.manifest.samples),
        patients=torch.tensor(everyone) * 7,
    )
    rows = torch.tensor([8, 6])
    made = make_pair(run, torch.zeros(2, 12, val.manifest.samples, dtype=torch.int16), Key(0, 0, rows))
    assert made.patients.tolist() == (everyone[[8, 6]] * 7).tolist()
