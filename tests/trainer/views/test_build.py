import math
import typing
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats

from trainer.views import VIEWS, Key, View, Views, build
from umbra.errors import UserError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def keys(batch, start=0, view=0):
    return Key(0, 0, torch.arange(start, start + batch), view)


def test_views_are_sorted_by_stage_and_keep_their_order():
    views = build(["time_mask", {"name": "vcg", "max_angle": 10}, "block_mask", "gaussian"], LEADS)
    assert [type(v) for v in views.signal] == [VIEWS["vcg"], VIEWS["gaussian"]]
    assert [type(v) for v in views.mask] == [VIEWS["time_mask"], VIEWS["block_mask"]]
    assert views.signal[0].max_angle == 10.0


def test_each_stage_applies_its_own_views_in_order():
    views = build(["gaussian", "vcg", "time_mask"], LEADS)
    x, key = torch.randn(4, 12, 100), keys(4)
    by_hand = views.signal[1](views.signal[0](x, key, 100.0), key, 100.0)
    assert torch.equal(views.signal_views(x, key, 100.0), by_hand)
    assert torch.equal(views.mask_views(x, key, 100.0), views.mask[0](x, key, 100.0))


def test_an_empty_list_changes_nothing():
    views = build([], LEADS)
    x = torch.randn(2, 12, 50)
    assert views.signal_views(x, keys(2), 100.0) is x
    assert views.mask_views(x, keys(2), 100.0) is x


@pytest.mark.parametrize("name", VIEWS)
def test_a_share_of_the_ecgs_is_viewed_and_the_others_stay(name):
    """Each as it is alone, in any batch; on the other side others."""
    x = 0.1 * torch.randn(400, 12, 500)
    some = build([{"name": name, "share": 0.25}], LEADS)
    whole = build([name], LEADS)
    view, same = [views.signal_views if views.signal else views.mask_views for views in (some, whole)]
    one, every = view(x, keys(400), 100.0), same(x, keys(400), 100.0)
    changed = (one != x).flatten(1).any(1)
    assert torch.equal(one[changed], every[changed])
    able = (every != x).flatten(1).any(1).double().mean().item()  # lead_drop is for half of the ECGs as it is
    assert abs(changed.double().mean().item() - 0.25 * able) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert torch.equal(one[200:], view(x[200:], keys(200, start=200), 100.0))
    other = (view(x, keys(400, view=1), 100.0) != x).flatten(1).any(1)
    assert abs((changed & other).double().mean().item() - (0.25 * able) ** 2) < 4 * math.sqrt(0.0625 / 400)


def test_two_views_of_a_kind_choose_their_share_apart():
    x = torch.randn(400, 12, 100)
    views = build([{"name": "gaussian", "share": 0.5}, {"name": "gaussian", "share": 0.5}], LEADS).signal
    first, second = [(Views([v]).signal_views(x, keys(400), 100.0) != x).flatten(1).any(1) for v in views]
    assert abs((first & second).double().mean().item() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_a_spec_is_not_changed_by_building():
    spec = {"name": "gaussian", "sd_mv": 1}
    build([spec], LEADS)
    assert spec == {"name": "gaussian", "sd_mv": 1}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["blok_mask"], "unknown view 'blok_mask'; did you mean 'block_mask'"),
        (["zzz"], "unknown view 'zzz'; known: gaussian, vcg, block_mask, time_mask"),
        ([{"name": "vcg", "max_angel": 3}], "view 'vcg': unknown argument 'max_angel'; did you mean 'max_angle'"),
        ([{"name": "gaussian", "op": "x"}], "view 'gaussian': unknown argument 'op'; known: share, sd_mv"),
        ([{"name": "gaussian", "leads": ["I"]}], "unknown argument 'leads'"),
        ([{"sd_mv": 1.0}], "must be a name or a mapping with a name"),
        ([{"name": ["vcg"]}], "unknown view"),
        ([3], "view 3 must be a name or a mapping with a name"),
        ("vcg", "views must be a list"),
        ({"name": "vcg"}, "views must be a list"),
        ([{"name": "vcg", "share": 0}], "view 'vcg': share must be above 0 and at most 1, not 0"),
        ([{"name": "vcg", "share": 1.5}], "view 'vcg': share must be above 0 and at most 1, not 1.5"),
        ([{"name": "vcg", "share": "half"}], "view 'vcg': share must be of type float, not 'half'"),
        ([{"name": "gaussian", "sd_mv": -0.1}], "view 'gaussian': sd_mv must be at least 0, not -0.1"),
    ],
)
def test_mistakes_are_named(specs, message):
    with pytest.raises(UserError, match=message) as caught:
        build(specs, LEADS)
    assert "\n" not in str(caught.value)


@dataclass(kw_only=True)
class Odd(View):
    stage: ClassVar[str] = "signals"
    most: int | None = None
    factor: float = 1.0

    def __call__(self, x, key, rate):
        return x * self.factor


def test_a_view_of_an_unknown_stage_is_refused_and_not_dropped(monkeypatch):
    monkeypatch.setitem(VIEWS, "odd", Odd)
    with pytest.raises(UserError, match="view 'odd': its stage 'signals' is unknown; use signal or mask"):
        build(["odd"], LEADS)
    monkeypatch.setattr(Odd, "stage", "mask")
    assert [type(v) for v in build(["odd"], LEADS).mask] == [Odd]


def test_an_argument_of_several_types(monkeypatch):
    monkeypatch.setitem(VIEWS, "odd", Odd)
    monkeypatch.setattr(Odd, "stage", "signal")
    views = build([{"name": "odd", "most": 3, "factor": 2}, {"name": "odd", "most": None}], LEADS).signal
    assert [(v.most, v.factor, type(v.factor)) for v in views] == [(3, 2.0, float), (None, 1.0, float)]
    with pytest.raises(UserError, match=r"view 'odd': most must be of type int \| None, not 1\.5"):
        build([{"name": "odd", "most": 1.5}], LEADS)


def test_gaussian_adds_noise_of_the_deviation_stated():
    x = torch.randn(50, 12, 500)
    out = build([{"name": "gaussian", "sd_mv": 0.2}], LEADS).signal_views(x, keys(50), 100.0)
    noise = (out - x).double()
    assert stats.kstest(noise[:20].numpy().ravel(), stats.norm(0, 0.2).cdf).pvalue > 1e-4
    flat = noise.transpose(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(12)).abs().max() < 5 / flat.shape[1] ** 0.5


def test_gaussian_differs_by_view_and_not_by_batch():
    view = build(["gaussian"], LEADS).signal[0]
    x = torch.randn(6, 12, 101)
    together = view(x, keys(6), 100.0)
    assert torch.equal(together, torch.cat([view(x[i : i + 1], keys(1, start=i), 100.0) for i in range(6)]))
    first, second = together - x, view(x, keys(6, view=1), 100.0) - x
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 5 / x.numel() ** 0.5


def test_gaussian_adds_in_float32():
    x = torch.randn(4, 12, 200).to(torch.bfloat16)
    view = build(["gaussian"], LEADS).signal[0]
    out = view(x, keys(4), 100.0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, view(x.float(), keys(4), 100.0).to(torch.bfloat16))


FLOATS = [(n, a) for n, view in VIEWS.items() for a in view.arguments() if typing.get_type_hints(view)[a] is float]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("name", "arg"), FLOATS, ids=[".".join(one) for one in FLOATS])
def test_no_argument_takes_a_number_that_is_not_finite(name, arg, value):
    with pytest.raises(UserError, match=f"view '{name}': {arg} must be a finite number, not {value}"):
        build([{"name": name, arg: value}], LEADS)
