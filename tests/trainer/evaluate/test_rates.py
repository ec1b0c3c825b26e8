"""Layer-wise learning rates against groups written by hand for each architecture."""

import pytest
import torch
from torch import nn

from trainer.evaluate.rates import layers, parameter_groups
from umbra.encoders.registry import ENCODERS, build_encoder

SMALL = {"width": 8, "groups": 4}
BY_HAND = {
    "resnet18": (SMALL | {"embedding": 8}, ["stem", *(f"stages.{i}" for i in range(8)), "embed"]),
    "resnet34": (SMALL | {"embedding": 8}, ["stem", *(f"stages.{i}" for i in range(16)), "embed"]),
    "xresnet1d101": (SMALL, ["stem", *(f"blocks.{i}" for i in range(33))]),
    "vit_s": ({"width": 12, "depth": 3, "heads": 2}, ["embed", "blocks.0", "blocks.1", "blocks.2", "norm"]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_layers_of_each_architecture_are_those_written_by_hand(name):
    args, by_hand = BY_HAND[name]
    backbone, head = build_encoder(name, 12, 100, args), nn.Linear(8, 2)
    wanted = {}
    for parameter, value in backbone.named_parameters():
        [layer] = [i for i, prefix in enumerate(by_hand) if f"{parameter}.".startswith(f"{prefix}.")]
        wanted[value] = (0.1 * 0.5 ** (len(by_hand) - layer), 0.01 if value.ndim > 1 else 0.0)
    wanted |= {head.weight: (0.1, 0.01), head.bias: (0.1, 0.0)}
    groups = parameter_groups(backbone, head, lr=0.1, decay=0.5, weight_decay=0.01)
    given = [(p, (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(given) == len(wanted), "each parameter once"
    for parameter, (rate, shrink) in given:
        assert rate == pytest.approx(wanted[parameter][0], rel=1e-12)
        assert shrink == wanted[parameter][1]


def test_every_registered_encoder_is_tried_by_hand():
    assert BY_HAND.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_the_order_by_hand_is_that_of_the_forward_pass(name):
    args, by_hand = BY_HAND[name]
    backbone, ran = build_encoder(name, 12, 100, args).eval(), []
    for prefix in by_hand:
        backbone.get_submodule(prefix).register_forward_pre_hook(lambda module, given, at=prefix: ran.append(at))
    backbone(torch.zeros(1, 12, 100))
    assert ran == by_hand


def test_without_decay_all_learn_at_one_rate_in_two_groups():
    backbone = build_encoder("resnet18", 12, 100, BY_HAND["resnet18"][0])
    groups = parameter_groups(backbone, nn.Linear(8, 2), lr=0.3, decay=1.0, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.3, 0.1), (0.3, 0.0)]


def test_own_and_shared_parameters_are_taken_once():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 3))
            self.first = nn.Linear(3, 3)
            self.act = nn.ReLU()
            self.again = self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.last = nn.Linear(3, 3)
            self.last.weight = self.first.weight

    odd = Odd()
    names = {p: name for name, p in odd.named_parameters()}
    assert [[names[p] for p in layer] for layer in layers(odd)] == [
        ["token", "first.weight", "first.bias"],
        ["again.0.weight", "again.0.bias"],
        ["last.bias"],
    ]
