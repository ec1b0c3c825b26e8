"""Masks of other ECGs: whose each gets, whose masker gets the gradient, at any number of ranks."""

import numpy as np
import pytest
import torch

from tests.support.players import PlainEngine, players
from tests.support.ranks import Ranks, on_ranks
from trainer.game.game import Game, Pair
from trainer.game.masking import GameConfig
from trainer.game.others import of_others


def numbered(count):
    """[2, B, 1]: the number of an ECG, and 100 more in the second mask."""
    return torch.stack([torch.arange(count), torch.arange(count) + 100])[..., None].double()


def chosen(masks, patients=None):
    got = of_others(masks, patients)
    assert torch.equal(got[1], got[0] + 100)
    return got[0, :, 0].tolist()


def test_it_is_half_a_batch_further_on_or_the_next_of_another_patient():
    assert chosen(numbered(6)) == [3, 4, 5, 0, 1, 2]
    assert chosen(numbered(5)) == [3, 4, 0, 1, 2]
    assert chosen(numbered(6), torch.tensor([7, 1, 2, 7, 4, 5])) == [4, 4, 5, 1, 1, 2]
    assert len(chosen(numbered(3), torch.tensor([9, 9, 9]))) == 3
    assert chosen(numbered(1)) == [0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_masks_and_gradients_are_the_same_at_any_number_of_ranks(size, monkeypatch):
    rng = np.random.default_rng(0)
    masks, weight = torch.tensor(rng.normal(size=(2, 8, 3))), torch.tensor(rng.normal(size=(2, 8, 3)))
    patients, ranks = torch.tensor([0, 1, 2, 3, 0, 0, 2, 5]), Ranks(size)
    on_ranks(ranks, monkeypatch)

    def job(rank):
        part = slice(rank * 8 // size, (rank + 1) * 8 // size)
        mine = masks[:, part].clone().requires_grad_()
        got = of_others(mine, patients[part])
        (got * weight[:, part]).sum().backward()
        return got.detach(), mine.grad

    got, gradient = (torch.cat(parts, 1) for parts in zip(*ranks.play(job)))
    source = [6, 5, 7, 7, 1, 1, 3, 3]
    assert torch.equal(got, masks[:, source])
    expected = torch.zeros_like(masks)
    for place, other in enumerate(source):
        expected[:, other] += weight[:, place]
    torch.testing.assert_close(gradient, expected)


def test_the_masker_of_the_other_ecg_gets_the_gradient_that_plain_autograd_gives():
    encoder, masker, pair = players(1)
    cfg = GameConfig(slope=5.0, mask_of="another")
    game = Game(PlainEngine(encoder), PlainEngine(masker), cfg, 0.3)
    game.step([pair], 0)
    got = [p.grad.clone() for p in masker.parameters()]
    masker.zero_grad()
    _, hidden = Game(None, None, GameConfig(slope=5.0), 0.3).hide(masker, pair)
    moved = Pair(pair.x, pair.v * (1 - hidden[0][[3, 4, 0, 1, 2]]), pair.key)
    loss, _ = Game(PlainEngine(encoder), None, GameConfig(enabled=False), 0.3)._contrast(encoder, moved, None)
    (-loss).backward()
    for p, gradient in zip(masker.parameters(), got):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-9, atol=1e-12)


def test_held_out_losses_tell_own_masks_from_those_that_are_played():
    encoder, masker, pair = players(1)
    engines = PlainEngine(encoder), PlainEngine(masker)
    own = Game(*engines, GameConfig(slope=5.0), 0.3).evaluate(pair)
    other = Game(*engines, GameConfig(slope=5.0, mask_of="another"), 0.3).evaluate(pair)
    assert other["masked_loss"] == own["masked_loss"] == own["loss"]
    assert other["loss"] == own["others_masks_loss"] != own["loss"]
