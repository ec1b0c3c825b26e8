"""`batch.device`: a batch in chunks gives what it gives whole, with the activations of one chunk in memory."""

import copy

import pytest
import torch
from torch import nn

from tests.support.handmade import make_shards
from tests.support.players import PlainEngine
from trainer import pretrain
from trainer.data.shards import Shards
from trainer.game.chunks import in_chunks
from trainer.game.game import Game, GameConfig, Pair
from trainer.game.maskers.unet import UNet
from trainer.game.players import ContrastiveEncoder, make_players
from trainer.game.projector import Projector
from trainer.views import Key
from umbra.encoders.registry import build_encoder


def players(dtype: torch.dtype) -> tuple[ContrastiveEncoder, UNet, Pair]:
    torch.manual_seed(0)
    backbone = build_encoder("resnet18", 12, 128, {"width": 8, "embedding": 12})
    x, v = torch.randn(2, 6, 12, 128, dtype=dtype)
    pair = Pair(x, v, Key(0, 0, torch.arange(6)), torch.tensor([0, 1, 1, 2, 3, 4]))
    return ContrastiveEncoder(backbone, Projector(12, 16, 8)).to(dtype), UNet(12, 2, 8, width=8).to(dtype), pair


def played(cfg: GameConfig, rows: int) -> list[torch.Tensor]:
    """The loss, and each player's gradient."""
    encoder, masker, pair = players(torch.float64)
    encoder.chunk, masker.chunk = 2 * rows, rows
    figures, _ = Game(PlainEngine(encoder), PlainEngine(masker), cfg, 0.3).step([pair], 0)
    return [figures["loss"], *(torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (encoder, masker))]


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("use", ["one", "all"])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_the_game_in_chunks_has_the_gradients_of_the_whole(schedule, use, rows):
    cfg = GameConfig(masks=2, use=use, schedule=schedule, slope=5)
    for whole, chunked in zip(played(cfg, 0), played(cfg, rows)):
        assert (whole - chunked).norm() <= 1e-6 * whole.norm()
        assert whole.norm() > 0


def test_fp32_chunks_agree_to_1e_4():
    encoder, _, pair = players(torch.float32)
    found = []
    for chunk in (0, 2):
        module = copy.deepcopy(encoder)
        module.chunk = chunk
        module(pair.x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()


def test_activations_of_one_chunk_are_kept_and_results_of_all():
    """What the graph holds between forward and backward, and the most rows that pass at once."""
    torch.manual_seed(0)
    net, rows = nn.Sequential(nn.Linear(4, 500), nn.GELU(), nn.Linear(500, 2)), []
    net[0].register_forward_hook(lambda module, given, result: rows.append(len(result)))
    held = {0: 0, 2: 0}
    for chunk in held:

        def keep(tensor, chunk=chunk):
            held[chunk] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            z = in_chunks(net, torch.randn(8, 4), chunk)
        z.sum().backward()
    assert held[0] > 8 * 500
    assert held[2] < 8 * 4 + 1
    assert rows == [8] + [2] * 4 + [2] * 4  # whole; in chunks forward, and again backward


def test_without_gradients_chunks_are_passed_once():
    rows = []
    with torch.no_grad():
        out = in_chunks(lambda part: rows.append(len(part)) or part * 2, torch.arange(5.0), 2)
    assert (rows, out.tolist()) == ([2, 2, 1], [0, 2, 4, 6, 8])


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["game.masks=3"], 10),
        (["game.masks=3", "game.use=all"], 20),
        (["game.enabled=false"], 10),
    ],
)
def test_a_device_batch_counts_ecgs_with_all_their_views(words, rows, tmp_path):
    shards = make_shards(tmp_path / "s", {"train": ["SR"] * 16})
    cfg = pretrain.read_config([f"data.path={shards}", "batch.global=16", "batch.device=5", *words])
    encoder, masker = make_players(cfg, Shards(shards, "train"))
    assert encoder.chunk == rows
    assert masker is None or masker.chunk == 5
