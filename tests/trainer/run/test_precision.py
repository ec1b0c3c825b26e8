"""Training under bf16 autocast goes where fp32 goes."""

import pytest
import torch
from torch import Tensor

from trainer.game.game import contrast
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from umbra.encoders.registry import build_encoder

TINY = {
    "resnet18": ({"width": 8, "embedding": 16, "activation": "gelu"}, 3e-4),
    "vit_s": ({"width": 16, "depth": 2, "heads": 2, "patch": 8}, 1e-3),
}


def losses(name: str, bf16: bool) -> Tensor:
    """The losses of 200 steps on fresh batches of random walks, noisy in view 1 and with gaps in view 2."""
    args, rate = TINY[name]
    torch.manual_seed(0)
    backbone = build_encoder(name, 2, 64, args)
    encoder = ContrastiveEncoder(backbone, Projector(backbone.dim, 32, 16))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=rate)
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(200):
        clean = torch.randn(32, 2, 64, generator=generator).cumsum(-1) / 4
        noisy = clean + 0.3 * torch.randn(32, 2, 64, generator=generator)
        hidden = (torch.rand(32, 1, 64, generator=generator) < 0.3).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = contrast(encoder, noisy, [clean * (1 - hidden)], 0.2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("name", TINY)
def test_the_loss_under_bf16_autocast_tracks_fp32_within_2_percent(name):
    exact, cast = losses(name, False), losses(name, True)
    assert not torch.equal(exact, cast)
    assert exact[-10:].mean() < 0.85 * exact[:10].mean()
    off = (cast - exact) / exact
    assert off.abs().mean() < 0.01
    assert off.unfold(0, 10, 10).mean(1).abs().max() < 0.02
