"""Probes that look on at a run."""

import math
import types

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from torch import nn

from tests.support.handmade import make_shards
from trainer.data.shards import Shards
from trainer.run import online_probe
from trainer.run.online_probe import PENALTY, Labels, OnlineProbe, effective_rank, open_probe
from umbra.errors import UserError


def test_effective_rank_counts_the_directions_that_are_used():
    """RankMe: D for D equal directions, 1 for one; of shares 1/2, 1/4, 1/4 two to the power of 1.5."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 5)))[0]
    assert effective_rank(axes) == pytest.approx(5)
    assert effective_rank(axes[:, :1] @ np.ones((1, 5))) == pytest.approx(1)
    assert effective_rank(axes[:, :3] * [2, 1, 1]) == pytest.approx(2**1.5)
    assert effective_rank(np.zeros((4, 3))) == 1


@pytest.mark.parametrize("kind", ["classes", "labels", "number"])
def test_a_probe_is_ridge_regression_of_each_half_scored_on_the_other(kind):
    rng = np.random.default_rng(1)
    x, place, second = rng.normal(3, 2, (90, 6)).astype(np.float32), np.arange(5, 85), np.arange(80) // 3 % 2 == 1
    score = (x[place] - 3) @ rng.normal(size=(6, 3)) + rng.normal(size=(80, 3))
    target = {"classes": np.eye(3)[score.argmax(1)], "labels": score > 1, "number": score}[kind].astype(np.float32)
    wanted = []
    for fit in (~second, second):
        inside, outside = x[place][fit], x[place][~fit]
        mean, std = inside.mean(0), inside.std(0)
        model = Ridge(alpha=PENALTY * fit.sum()).fit((inside - mean) / std, target[fit])
        told = model.predict((outside - mean) / std)
        measure = r2_score if kind == "number" else roc_auc_score
        if kind == "number":  # the targets are standardised: the penalty is the same for all units
            spread = target[fit].std(0)
            model = Ridge(alpha=PENALTY * fit.sum()).fit((inside - mean) / std, target[fit] / spread)
            told = model.predict((outside - mean) / std) * spread
        wanted.append(np.mean([measure(target[~fit][:, k], told[:, k]) for k in range(3)]))
    assert Labels("t", kind, place, target, second).value(x) == pytest.approx(np.mean(wanted), abs=1e-5)


@pytest.fixture
def heldout(tmp_path):
    kinds = ["SR", "SR", "AFIB", "AFIB"]
    return Shards(make_shards(tmp_path / "s", {"train": kinds * 4, "val": kinds * 6}), "val")


def test_patients_stay_in_one_half_and_the_networks_as_they_were(heldout):
    probe = open_probe(["rhythm"], heldout, 24)
    (rhythm,) = probe.tasks
    patients = heldout.patients()[heldout.rows][rhythm.place]
    assert all(len(set(rhythm.second[patients == p])) == 1 for p in patients)
    assert 0 < rhythm.second.sum() < len(rhythm.second)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12 * 256, 8), nn.BatchNorm1d(8))
    module = nn.ModuleDict({"backbone": backbone}).train()
    module.backbone = backbone
    engine = types.SimpleNamespace(
        module=module, torch_autocast_dtype=lambda: torch.bfloat16, torch_autocast_enabled=lambda: False
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    world = types.SimpleNamespace(rank=0, size=1, device=torch.device("cpu"))
    found = probe.figures(engine, nn.Identity(), world)
    assert found.keys() == {"probe/rhythm", "heldout/effective_rank"}
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        features = backbone.eval()(torch.from_numpy(heldout.read_mv(np.arange(24)))).numpy()
    assert float(found["probe/rhythm"]) == pytest.approx(rhythm.value(features), abs=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_features_that_are_not_finite_end_no_run(broken, heldout):
    probe = open_probe(["rhythm", "sex"], heldout, 24)
    features = np.ones((24, 8), np.float32)
    features[3, 2] = broken
    object.__setattr__(probe, "_features", lambda *_: features)
    found = probe.figures(None, None, types.SimpleNamespace(device=torch.device("cpu")))
    assert found.keys() == {"probe/rhythm", "probe/sex", "heldout/effective_rank"}
    assert all(value.isnan() for value in found.values())


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_every_ecg_is_probed_whether_or_not_the_ranks_divide_them(size, heldout, monkeypatch):
    """Also where there are more ranks than the last ones have ECGs for."""
    count, module = 9, nn.ModuleDict({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(12 * 256, 8))})
    module.backbone = module["backbone"]
    engine = types.SimpleNamespace(
        module=module, torch_autocast_dtype=lambda: torch.bfloat16, torch_autocast_enabled=lambda: False
    )
    probe, parts = OnlineProbe(heldout, count, []), []
    monkeypatch.setattr(online_probe.distributed, "gather_tensors", lambda mine: parts.append(mine) or parts)
    for rank in range(size):
        world = types.SimpleNamespace(rank=rank, size=size, device=torch.device("cpu"))
        found = probe._features(engine, nn.Identity(), world)
    assert len({len(part) for part in parts}) == 1
    with torch.no_grad():
        whole = module.backbone(torch.from_numpy(heldout.read_mv(np.arange(count)))).numpy()
    assert found.shape == whole.shape
    assert found == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("names", "count", "said"),
    [
        (["rythm"], 24, "log.probe=rythm: .*rythm.yaml does not exist; there are: .*rhythm"),
        (["rhythm"], 2, "the first 2 held-out ECGs have too few labels of it .* raise log.probe_ecgs"),
        (["ptbxl-superclass"], 24, "task 'ptbxl-superclass'"),
    ],
)
def test_what_cannot_be_probed_is_one_line(names, count, said, heldout):
    with pytest.raises(UserError, match=said) as error:
        open_probe(names, heldout, count)
    assert "\n" not in str(error.value)


def test_without_held_out_patients_there_is_nothing_to_probe():
    assert open_probe([], None, 0) is None
    with pytest.raises(UserError, match=r"log\.probe=sex: the data set has no val split"):
        open_probe(["sex"], None, 0)
