import numpy as np
import pytest
import torch

from trainer.views import Key, build
from umbra.errors import UserError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def mask(spec, batch=64, samples=1000, leads=LEADS, view=0, epoch=0, start=0):
    """bool [B, L, T]: what the view sets to zero in a signal that is zero nowhere."""
    x = torch.ones(batch, len(leads), samples) * 1.5
    key = Key(1, epoch, torch.arange(start, start + batch), view)
    out = build([spec], leads).mask_views(x, key, 100.0)
    assert torch.all((out == 0) | (out == x))
    return out == 0


def runs(row, ring=False):
    """Number of hidden stretches of one bool row."""
    row = row.numpy().astype(int)
    rises = int((np.diff(row) == 1).sum())
    return rises + int(row[0] == 1 and not (ring and row[-1] == 1))


@pytest.mark.parametrize(("samples", "coverage", "hidden"), [(1000, 0.5, 500), (1000, 0.2, 200), (333, 0.3, 100)])
@pytest.mark.parametrize("name", ["block_mask", "time_mask"])
@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_hides_exactly_the_share_stated(name, samples, coverage, hidden, blocks):
    m = mask({"name": name, "coverage": coverage, "blocks": blocks}, samples=samples)
    assert torch.all(m.sum(-1) == hidden)


def test_the_least_share_is_one_sample_and_the_largest_leaves_one():
    for coverage, hidden in ((1e-4, 1), (1 - 1e-4, 999)):
        assert torch.all(mask({"name": "block_mask", "coverage": coverage}).sum(-1) == hidden)


def test_block_is_one_stretch_shared_by_the_leads():
    m = mask("block_mask")
    assert all(runs(row) == 1 for row in m[:, 0])
    assert torch.equal(m, m[:, :1].expand_as(m))
    assert len({tuple(row.tolist()) for row in m[:, 0]}) > 50


def test_every_start_that_fits_occurs_evenly():
    starts = mask({"name": "block_mask", "coverage": 0.7}, batch=11_000, samples=10)[:, 0].int().argmax(-1)
    counts = torch.bincount(starts, minlength=4)
    assert len(counts) == 4
    assert (counts - 2750).abs().max() < 5 * (11_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("name", ["block_mask", "time_mask"])
def test_per_lead_masks_differ_between_leads(name):
    m = mask({"name": name, "per_lead": True})
    for sample in m:
        assert len({tuple(row.tolist()) for row in sample}) >= 9
    starts = m.int().diff(dim=-1).eq(1).int().argmax(-1).double()
    assert torch.corrcoef(starts.T).fill_diagonal_(0).abs().max() < 0.6


def test_time_mask_is_a_stretch_on_a_ring_that_hides_every_sample_equally_often():
    m = mask("time_mask", batch=2000, samples=20)
    assert all(runs(row, ring=True) == 1 for row in m[:50].flatten(0, 1))
    assert any(row[0] and row[-1] for row in m[:50].flatten(0, 1))
    rate = m.double().mean((0, 1))
    assert (rate - 0.5).abs().max() < 5 * 0.5 / (2000 * 12) ** 0.5


def test_time_masks_of_two_leads_lie_at_any_distance():
    m = mask("time_mask", batch=4000, samples=20)[:, :2]
    starts = (m & ~m.roll(1, dims=-1)).int().argmax(-1)
    counts = torch.bincount((starts[:, 1] - starts[:, 0]) % 20, minlength=20)
    assert (counts - 200).abs().max() < 5 * (4000 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("name", ["block_mask", "time_mask"])
def test_several_blocks_are_several_stretches(name):
    m = mask({"name": name, "blocks": 4, "coverage": 0.3})
    counts = [runs(row, ring=name == "time_mask") for row in m[:, 0]]
    assert max(counts) == 4
    assert np.mean(counts) > 3.5
    single = mask({"name": name, "coverage": 0.3})
    assert not torch.equal(m, single)


def test_blocks_longer_than_the_samples_still_hide_the_share():
    assert torch.all(mask({"name": "block_mask", "blocks": 9, "coverage": 0.5}, samples=8).sum(-1) == 4)


@pytest.mark.parametrize("name", ["block_mask", "time_mask"])
def test_views_epochs_and_samples_draw_their_own(name):
    here = mask(name)
    for other in (mask(name, view=1), mask(name, epoch=1), mask(name, start=64)):
        assert (here == other).all((1, 2)).double().mean() < 0.1
    assert torch.equal(here, mask(name))


def test_two_masks_of_one_kind_in_a_list_draw_their_own():
    both = build(["block_mask", "block_mask"], LEADS)
    x = torch.ones(64, 12, 1000)
    key = Key(1, 0, torch.arange(64))
    hidden = (both.mask_views(x, key, 100.0) == 0).double().mean()
    assert 0.6 < hidden < 0.9  # the same block twice would hide one half


@pytest.mark.parametrize("spec", ["block_mask", "time_mask", {"name": "block_mask", "blocks": 3, "per_lead": True}])
def test_a_sample_is_masked_alike_alone_and_in_a_batch(spec):
    together = mask(spec, batch=5)
    alone = torch.cat([mask(spec, batch=1, start=i) for i in range(5)])
    assert torch.equal(together, alone)


def test_half_precision_stays_what_it_is_and_the_input_too():
    x = torch.randn(4, 12, 100).to(torch.bfloat16)
    before = x.clone()
    out = build(["block_mask"], LEADS).mask_views(x, Key(0, 0, torch.arange(4)), 100.0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(x, before)
    assert torch.equal(out[out != 0], x[out != 0])


def test_gradient_flows_through_what_is_shown_only():
    x = torch.ones(3, 12, 50, requires_grad=True)
    out = build(["time_mask"], LEADS).mask_views(x, Key(0, 0, torch.arange(3)), 100.0)
    out.sum().backward()
    assert torch.equal(x.grad, (out.detach() != 0).float())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"coverage": 0.0}, "coverage must be between 0 and 1, not 0"),
        ({"coverage": 1}, "coverage must be between 0 and 1, not 1"),
        ({"coverage": float("nan")}, "coverage must be a finite number"),
        ({"blocks": 0}, "blocks must be at least 1, not 0"),
        ({"blocks": 1.5}, "blocks must be of type int, not 1.5"),
        ({"per_lead": "yes"}, "per_lead must be of type bool, not 'yes'"),
        ({"coverage": True}, "coverage must be of type float, not True"),
    ],
)
def test_arguments_out_of_range_are_refused(args, message):
    with pytest.raises(UserError, match=message):
        build([{"name": "block_mask", **args}], LEADS)


def test_lead_dropout_hides_whole_leads_with_its_probability_and_never_all_of_them():
    hidden = mask({"name": "lead_dropout", "p": 0.3}, batch=2000, samples=20)
    whole = hidden.all(-1)
    assert torch.equal(hidden.any(-1), whole)
    assert float(whole.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert not mask({"name": "lead_dropout", "p": 0.0}).any()
    few = mask({"name": "lead_dropout", "p": 0.95}, batch=500, samples=4).all(-1)
    assert few.sum(1).max() == 11
    assert torch.equal(mask({"name": "lead_dropout", "p": 0.3}, batch=8, samples=20, start=5).all(-1), whole[5:13])
    with pytest.raises(UserError, match="lead_dropout"):
        build([{"name": "lead_dropout", "p": 1.0}], LEADS)
