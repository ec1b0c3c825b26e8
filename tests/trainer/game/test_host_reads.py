"""Own reads of tensors on the host: each is a wait for a GPU, and a step of the game makes one."""

import pytest
import torch

from benchmarks.host_reads import ROOT, Reads, _short
from tests.support.players import PlainEngine
from trainer.game.game import Game, Pair
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.game.temperature import Temperature
from trainer.views import Key
from umbra.encoders.registry import build_encoder

READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "upload": lambda x: x + torch.tensor(1.0),
    "list": lambda x: x[[0, 2]],
    "as_tensor": lambda x: x + torch.as_tensor(1.0),
    "backward": lambda x: Reader.apply(x.requires_grad_()).sum().backward(),
}


class Reader(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.sum().item()


@pytest.mark.parametrize("name", READS)
def test_a_read_is_found_where_it_is(name):
    with Reads() as reads:
        READS[name](torch.arange(4.0))
    assert len(reads.found) == 1, reads.found
    (where, _), count = next(iter(reads.found.items()))
    assert where.startswith("tests/trainer/game/test_host_reads.py:")
    assert where.endswith("(backward)" if name == "backward" else "(<lambda>)")
    assert count >= 1


def test_a_place_in_deepspeed_is_deepspeeds_also_in_an_environment_inside_the_repository():
    for home in (str(ROOT / ".venv/lib/site-packages"), "/opt/env"):
        assert _short(f"{home}/deepspeed/runtime/utils.py") == "deepspeed/runtime/utils.py"
    assert _short(str(ROOT / "trainer/game/game.py")) == "trainer/game/game.py"


def test_arithmetic_reads_nothing():
    x, rows = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2])
    with Reads() as reads:
        torch.where(x > 0, x, 0).index_select(0, rows).kthvalue(2, -1).values.clamp_min(0.1)[rows - 1].sum().backward()
        x.new_full((), 0.1)
    assert not reads.found


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    "dials", [{}, {"masks": 2, "use": "all"}, {"masks": 3}, {"family": "lead", "share": 0.5}, {"family": "spectral"}]
)
def test_a_step_of_the_game_reads_once_a_player_and_phase(schedule, learn, dials):
    cfg, hop = GameConfig(schedule=schedule, **dials), 8
    backbone = build_encoder("resnet18", 12, 128, {"width": 8, "embedding": 12})
    temperature = Temperature(0.1) if learn else None
    encoder, masker = (
        ContrastiveEncoder(backbone, Projector(12, 16, 8), temperature),
        UNet(12, cfg.channels(12, hop), hop, 8),
    )
    pair = Pair(*torch.randn(2, 4, 12, 128), Key(0, 0, torch.arange(4)), torch.arange(4))
    game = Game(PlainEngine(encoder, 0.1), PlainEngine(masker, 0.1), cfg, 0.1, hop)
    with Reads() as reads:
        game.step([pair], 0)
    assert [where.split(":")[0] for where, _ in reads.found] == ["trainer/game/game.py"], reads.found
    assert sum(reads.found.values()) == (2 if schedule == "alternating" else 1)
