"""The game on a GPU is the game on a CPU: the same players, in float64, from the same draws."""

import pytest
import torch

from tests.support.devices import on_each
from tests.support.players import Accumulating
from trainer.game.batchnorm import over_all_ranks
from trainer.game.game import Game, Pair
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.game.temperature import Temperature
from trainer.views import Key
from umbra.encoders.registry import build_encoder

HOP, STEPS = 8, 2
RESNET = ("resnet18", {"width": 8, "embedding": 12, "activation": "gelu"})
PUBLISHED = {"masks": 2, "threshold": "half", "slope": 50, "penalty": "paper", "schedule": "alternating"}
CASES = {
    "time": (RESNET, {}),
    "lead": (RESNET, {"family": "lead", "share": 0.6}),
    "spectral": (RESNET, {"family": "spectral"}),
    "all masks": (RESNET, {"masks": 3, "use": "all"}),
    "alternating": (RESNET, {"schedule": "alternating", "masks": 2}),
    "published": (RESNET, PUBLISHED),
    "batch norm": (("resnet18", {**RESNET[1], "norm": "batch"}), {}),
    "xresnet": (("xresnet1d101", {"width": 8, "groups": 2}), {}),
    "vit": (("vit_s", {"width": 24, "depth": 2, "heads": 2, "patch": 16}), {}),
}


def played(device: str, case: str, accumulation: int) -> torch.Tensor:
    """How far each weight has come, and the last figures, after `STEPS` steps on a device."""
    (name, args), dials = CASES[case]
    cfg = GameConfig(**{"slope": 5, **dials})
    torch.manual_seed(0)
    backbone = over_all_ranks(build_encoder(name, 12, 128, args))
    encoder = ContrastiveEncoder(backbone, Projector(backbone.dim, 16, 8), Temperature(0.2), chunk=0)
    channels = cfg.channels(12, HOP)
    masker = PaperUNet(12, channels, width=16) if case == "published" else UNet(12, channels, HOP, 8)
    modules = [module.double().to(device) for module in (encoder, masker)]
    first = [p.detach().clone() for module in modules for p in module.parameters()]
    game = Game(*(Accumulating(module, 0.05, accumulation) for module in modules), cfg, 0.2, HOP, total=STEPS)
    draw = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        pairs = []
        for number in range(accumulation):
            x, v = torch.randn(2, 4, 12, 128, dtype=torch.float64, generator=draw).to(device)
            index = (torch.arange(4) + 10 * number).to(device)
            pairs.append(Pair(x, v, Key(0, step, index), index // 2))
        figures, _ = game.step(pairs, step)
        for module in modules:
            module.zero_grad()
    last = [p.detach() for module in modules for p in module.parameters()]
    moved = torch.cat([(new - old).flatten() for new, old in zip(last, first)])
    return torch.cat([moved, torch.stack([value.double() for value in figures.values()])]).cpu()


@pytest.mark.parametrize("device", on_each())
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_two_steps_are_those_of_the_cpu(case, accumulation, device):
    found, right = played(device, case, accumulation), played("cpu", case, accumulation)
    assert right.norm() > 0.1
    assert torch.allclose(found, right, rtol=1e-6, atol=1e-9, equal_nan=True)
