"""The operations of a step by formula, against those that torch counts while the real step is played."""

import types
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.handmade import make_shards
from trainer.config import PretrainConfig
from trainer.data.shards import Shards
from trainer.game.flops import training_flops
from trainer.game.game import Game, Still
from trainer.game.players import make_players, pairing_of
from trainer.run import pairs
from trainer.run.assemble import views_of
from trainer.views import Key
from umbra.config import load
from umbra.encoders.encoder import Scaling

ECGS, STEPS = 2, 2
NARROW = ["data.path=DIR", "encoder.args.width=8", "projector.hidden=8", "projector.out=8", "masker.width=24"]
OFF = ["game.enabled=false"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return Shards(make_shards(tmp_path_factory.mktemp("data") / "s", {"train": ["SR"] * ECGS}), "train")


def played(cfg, train, encoder, masker):
    """FLOPs an ECG, the mean over `STEPS` steps, with all gradients: also those at the ends of a network, which a step
    leaves out where nobody needs them."""
    engines = [Still(player, torch.device("cpu"), bf16=False) if player else None for player in (encoder, masker)]
    first, second = views_of(cfg, train)
    run = types.SimpleNamespace(
        cfg=cfg,
        train=train,
        scaling=Scaling([0.0] * 12, [0.5] * 12),
        first=first,
        second=second,
        pairing=pairing_of(cfg, train),
        patients=None,
        game=Game(*engines, cfg.game, cfg.temperature, hop=cfg.game.hop(train.manifest.rate), total=STEPS),
    )
    signals = torch.randint(-900, 900, (ECGS, 12, train.manifest.samples), dtype=torch.int16)
    with FlopCounterMode(display=False) as counter:
        for step in range(STEPS):
            pair = pairs.hard_pair(run, signals, Key(0, step, torch.arange(ECGS)))
            run.game.step([replace(pair, x=pair.x.requires_grad_(), v=pair.v.requires_grad_())], step)
    return counter.get_total_flops() / ECGS / STEPS


@pytest.mark.parametrize(
    "words",
    [
        OFF,
        [*OFF, "pair=halves", "views.both=[block_mask]", "views.candidates=4"],
        ["pair=crops", "pair.seconds=1"],
        ["game.masks=3", "game.use=all"],
        ["game.mask_of=another", "game.family=lead"],
        ["game.masker_interval=2"],
        ["game.warmup=0.5"],
        ["game.schedule=alternating", "game.masks=2", "game.use=all", "game.masker_interval=2"],
    ],
    ids=" ".join,
)
def test_the_operations_of_a_step_are_those_that_torch_counts(train, words):
    cfg = load(PretrainConfig, None, [*NARROW, *words])
    cfg.check()
    encoder, masker = make_players(cfg, train)
    told = training_flops(cfg, encoder, masker, 12, pairing_of(cfg, train).samples)
    assert played(cfg, train, encoder, masker) == pytest.approx(told, rel=0.005)
