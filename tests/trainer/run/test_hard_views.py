"""Of several random pairs, the one of least cosine is trained on: against a choice by hand."""

import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.handmade import make_shards
from tests.support.players import Joined, PlainEngine
from trainer.config import PretrainConfig
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Batch
from trainer.game.game import Game
from trainer.game.masking import GameConfig
from trainer.run.pairs import make_pair, pairs_of
from trainer.views import Key, build
from trainer.views.pairing import Pairing
from umbra.config import load
from umbra.encoders.encoder import Scaling

VIEWS = ["wander", {"name": "block_mask", "coverage": 0.5}]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return Shards(make_shards(tmp_path_factory.mktemp("data") / "s", {"train": ["SR", "AFIB", "STACH"] * 8}), "train")


def run_of(train, candidates, temperature=False):
    torch.manual_seed(0)
    layers = [nn.Conv1d(12, 6, 9, stride=4), nn.BatchNorm1d(6), nn.GELU(), nn.AdaptiveAvgPool1d(3), nn.Flatten()]
    encoder = Joined(*layers, nn.Linear(18, 5))
    return types.SimpleNamespace(
        cfg=load(PretrainConfig, None, ["game.enabled=false", f"views.candidates={candidates}"]),
        train=train,
        order=Order(train.counts, 3, 16, 8, 2, 2),
        scaling=Scaling([0.1] * 12, [0.5] * 12),
        first=build(VIEWS, train.manifest.leads),
        second=build(VIEWS, train.manifest.leads),
        pairing=Pairing("crops", 200),
        patients=torch.tensor(train.patients()),
        game=Game((Warm if temperature else PlainEngine)(encoder), None, GameConfig(enabled=False), 0.1),
    )


class Warm(PlainEngine):
    """An engine whose encoder learns a temperature."""

    def __call__(self, *views):
        return self.module(*views), torch.tensor(0.3)


def batch(run, step=0, rank=0, size=1):
    indices = run.order.step(step, rank, size)
    signals = torch.from_numpy(run.train.gather(indices, np.empty((*indices.shape, *run.train.shape), "<i2")))
    rows = torch.from_numpy(indices + run.train.rows.start)
    return Batch(step, signals, rows, indices)


@pytest.mark.parametrize("temperature", [False, True])
def test_each_ecg_gets_its_hardest_pair_and_the_encoder_stays_as_it_is(train, temperature):
    run = run_of(train, 5, temperature)
    encoder = run.game.encoder.module
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    given = batch(run)
    pairs = pairs_of(run, given)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training
    encoder.eval()
    chosen = []
    for pair, signals, rows in zip(pairs, given.signals, given.rows):
        tried = [make_pair(run, signals, Key(0, 0, rows), None, k) for k in range(5)]
        for i in range(len(rows)):
            z = [[encoder(side[i : i + 1])[0].detach() for side in (one.x, one.v)] for one in tried]
            cosine = [float(a @ b / (a.norm() * b.norm())) for a, b in z]
            k = int(np.argmin(cosine))
            chosen.append(k)
            assert torch.equal(pair.x[i], tried[k].x[i])
            assert torch.equal(pair.v[i], tried[k].v[i])
        assert (pair.x.requires_grad, pair.key.view) == (False, 0)
    assert len(set(chosen)) == 5


def test_one_candidate_is_the_pair_of_before_without_a_forward_pass(train, monkeypatch):
    run = run_of(train, 1)
    monkeypatch.setattr(run.game, "cosines", lambda pair: pytest.fail("the encoder was asked"))
    given = batch(run)
    for pair, signals, rows in zip(pairs_of(run, given), given.signals, given.rows):
        plain = make_pair(run, signals, Key(0, 0, rows))
        assert torch.equal(pair.x, plain.x)
        assert torch.equal(pair.v, plain.v)


def test_candidates_share_no_random_numbers_with_each_other_or_the_masker(train):
    run, seen = run_of(train, 3), []
    note = types.SimpleNamespace(
        signal_views=lambda x, key, rate: seen.append(key.view) or x, mask_views=lambda x, *_: x
    )
    run.first = run.second = note
    pairs_of(run, batch(run))
    assert seen == [0, 1, 4, 5, 8, 9] * 2


def test_the_choice_does_not_depend_on_the_number_of_processes(train):
    whole = {}
    for size in (1, 2, 4):
        for rank in range(size):
            run = run_of(train, 4)
            given = batch(run, 1, rank, size)
            for rows, pair in zip(given.rows.tolist(), pairs_of(run, given)):
                for row, x, v in zip(rows, pair.x, pair.v):
                    first = whole.setdefault(row, (x, v))
                    assert torch.equal(x, first[0])
                    assert torch.equal(v, first[1])
    assert len(whole) == 16
