import math

import numpy as np
import pytest
import torch

from trainer.game.masking import GameConfig, binarise
from trainer.views import Key, build
from trainer.views.random import normal
from umbra.errors import UserError

LEADS = ("I", "II", "V1")


def keys(batch, start=0, view=0):
    return Key(3, 0, torch.arange(start, start + batch), view)


def made(**args):
    return build([{"name": "cell_mask", **args}], LEADS, (1000, 100.0))


def hidden(batch=400, samples=1000, **args):
    """float [B, leads, samples]: how much of each sample is hidden."""
    return 1 - made(**args).mask_views(torch.ones(batch, 3, samples), keys(batch), 100.0)


@pytest.mark.parametrize(("samples", "hop"), [(1000, 40), (500, 40), (256, 30)])
@pytest.mark.parametrize("neighbours", [-0.78, 0.0, 0.8])
def test_the_mask_is_that_of_the_game_for_the_same_field(samples, hop, neighbours):
    """A reference: the field by hand, cell for cell, and the game's own binarisation."""
    masks = hidden(50, samples, cell_s=hop / 100, neighbours=neighbours, slope=7)
    cells = math.ceil(samples / hop)
    drawn, field = normal(keys(50), "cell_mask", (1, cells)).double(), []
    for cell in range(cells):
        before = neighbours * field[-1] if field else 0
        field.append(before + (math.sqrt(1 - neighbours**2) if field else 1) * drawn[..., cell])
    odds = torch.stack(field, -1)[None].repeat_interleave(hop, -1)[..., :samples]
    expected = binarise(odds, GameConfig(slope=7.0, coverage=0.5))[0]
    torch.testing.assert_close(masks, expected.float().expand(-1, 3, -1), rtol=0, atol=1e-6)


def test_it_is_the_same_alone_and_in_any_batch():
    x = torch.randn(33, 3, 517)
    views = made(per_lead=True, neighbours=0.3)
    whole = views.mask_views(x, keys(33), 100.0)
    for start, count in ((0, 1), (5, 7), (32, 1)):
        part = views.mask_views(x[start : start + count], keys(count, start), 100.0)
        assert torch.equal(part, whole[start : start + count])
    assert not torch.equal(views.mask_views(x, keys(33, view=1), 100.0), whole)


@pytest.mark.parametrize(("coverage", "cells"), [(0.25, 6), (0.5, 12), (0.75, 19), (0.01, 1), (0.99, 24)])
def test_so_many_cells_are_hidden(coverage, cells):
    decided = hidden(coverage=coverage, slope=1000)[:, 0, ::40] > 0.5
    assert (decided.sum(1) == cells).all()


@pytest.mark.parametrize(
    ("neighbours", "switches"), [(-0.78, 19.1), (0.0, 12.5), (0.8, 6.5)], ids=["learned", "white", "smooth"]
)
def test_masks_change_between_neighbours_as_often_as_they_should(neighbours, switches):
    """19.1 times in 25 cells: a masker that the game trained on PTB-XL (docs/methods.md)."""
    decided = (hidden(1000, neighbours=neighbours)[:, 0, ::40] > 0.5).float()
    assert decided.diff(dim=1).abs().sum(1).mean() == pytest.approx(switches, abs=0.3)


def test_leads_share_a_mask_unless_each_has_its_own():
    shared, own = hidden(40), hidden(40, per_lead=True)
    assert torch.equal(shared[:, 0], shared[:, 2])
    one, two = ((own[:, lead, ::40] > 0.5).float() for lead in (0, 1))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"coverage": 1}, "view 'cell_mask': coverage must be between 0 and 1, not 1"),
        ({"cell_s": 0}, "cell_s must be above 0, not 0"),
        ({"slope": 0}, "slope must be above 0, not 0"),
        ({"neighbours": -1}, "neighbours must be between -1 and 1, not -1"),
        ({"cell_s": 11}, "cell_s=11 leaves one cell in 10 s"),
    ],
)
def test_what_cannot_work_is_one_line(args, said):
    with pytest.raises(UserError, match=said):
        hidden(2, **args)
