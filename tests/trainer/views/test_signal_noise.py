"""Wander, mains, muscle noise and gains: against references, in their bands, and the same in any batch."""

import numpy as np
import pytest
import torch
from scipy import signal, stats

from trainer.views import Key, build
from trainer.views.emg import band_pass
from trainer.views.random import normal, uniform
from umbra.errors import UserError

LEADS = ("I", "II", "V1")
RATE = 250.0


def keys(batch, start=0, view=0, epoch=0):
    return Key(5, epoch, torch.arange(start, start + batch), view)


def added(spec, batch=64, samples=2500, rate=RATE, **key):
    """What the view adds to a silent ECG, [B, leads, samples]."""
    views = build([spec], LEADS, (2500, rate))
    return views.signal_views(torch.zeros(batch, len(LEADS), samples), keys(batch, **key), rate).numpy()


@pytest.mark.parametrize("name", ["wander", "mains", "emg", "lead_gain"])
def test_each_is_the_same_alone_and_in_any_batch_and_differs_by_side_and_epoch(name):
    views, x = build([name], LEADS, (2500, RATE)), torch.randn(40, 3, 611)
    whole = views.signal_views(x, keys(40), RATE)
    for start, count in ((0, 1), (7, 5), (39, 1), (2, 37)):
        part = views.signal_views(x[start : start + count], keys(count, start), RATE)
        assert torch.equal(part, whole[start : start + count])
    assert whole.dtype == x.dtype
    assert views.signal_views(x.bfloat16(), keys(40), RATE).dtype == torch.bfloat16
    for other in (keys(40, view=1), keys(40, epoch=1), keys(40, start=1)):
        assert not torch.equal(views.signal_views(x, other, RATE), whole)


@pytest.mark.parametrize("name", ["wander", "mains", "emg"])
def test_what_is_added_does_not_depend_on_the_ecg_and_its_leads_are_unrelated(name):
    views, x = build([name], LEADS, (2500, RATE)), torch.randn(8, 3, 500)
    noise = added(name, 8, 500)
    np.testing.assert_allclose(views.signal_views(x, keys(8), RATE) - x, noise, atol=1e-6)
    one, two = (added(name, 400, 500)[:, lead].ravel() for lead in (0, 1))
    assert abs(np.mean(one * two)) < 0.1 * np.mean(one * one)


@pytest.mark.parametrize(
    ("spec", "tones"),
    [
        ("wander", np.arange(1, 11) * 0.05),
        ({"name": "wander", "low": 0.1, "high": 0.3}, np.arange(2, 7) * 0.05),
        ("mains", 50 + np.arange(-2, 3) * 0.1),
        ({"name": "mains", "hz": 60}, 60 + np.arange(-2, 3) * 0.1),
    ],
)
def test_tones_equal_a_reference_in_numpy(spec, tones):
    noise, name = added(spec), spec if isinstance(spec, str) else spec["name"]
    most = {"wander": 0.2, "mains": 0.05}[name]
    factor = normal(keys(64), name, (3, 2 * len(tones))).double().numpy() / np.sqrt(len(tones))
    angle = 2 * np.pi * tones[:, None] * np.arange(2500) / RATE
    size = uniform(keys(64), f"{name}.size", (1, 1), 0, most).double().numpy()
    expected = size * (factor @ np.concatenate([np.cos(angle), np.sin(angle)]))
    np.testing.assert_allclose(noise, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "most", "low", "high"), [("wander", 0.2, 0.05, 0.5), ("mains", 0.05, 49.8, 50.2)])
def test_tones_have_their_size_and_band(name, most, low, high):
    noise = added(name, 200, 5000)  # 20 s: whole turns of every tone
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(5000, 1 / RATE)
    inside = (hertz > low - 0.01) & (hertz < high + 0.01)
    assert power[..., ~inside].sum() < 1e-6 * power.sum()
    assert stats.kstest(uniform(keys(200), f"{name}.size").numpy().ravel(), "uniform").pvalue > 1e-4
    assert noise.var() == pytest.approx(most**2 / 3, rel=0.2)


def test_the_amplitude_of_mains_changes_slowly():
    envelope = np.abs(signal.hilbert(added("mains", 64, 5000)))[..., 250:-250]
    assert (envelope.std(-1) / envelope.mean(-1)).mean() > 0.2
    assert np.abs(np.diff(envelope)).max() < 0.01 * envelope.max()


@pytest.mark.parametrize(("low", "high", "rate"), [(20, 112.5, 250.0), (20, 45, 100.0), (20, 150, 500.0)])
def test_the_filter_of_muscle_noise_is_that_of_scipy(low, high, rate):
    taps = np.array(band_pass(low, high, rate))
    expected = signal.firwin(len(taps), [low, high], pass_zero=False, scale=False, window="hamming", fs=rate)
    np.testing.assert_allclose(taps, expected / np.linalg.norm(expected), atol=1e-9)
    hertz, answer = signal.freqz(taps, fs=rate, worN=2000)
    power = np.abs(answer) ** 2
    assert power[(hertz < low - 12) | (hertz > high + 12)].sum() < 0.02 * power.sum()


def test_muscle_noise_equals_a_reference_with_scipy_and_is_silent_between_its_bursts():
    noise = added("emg", 32, 5000)
    taps, key = np.array(band_pass(20, 0.45 * RATE, RATE)), keys(32)
    white = normal(key, "emg.noise", (3, 5000 + len(taps) - 1)).double().numpy()
    filtered = signal.fftconvolve(white, taps[None, None, ::-1], mode="valid", axes=-1)
    assert filtered.var() == pytest.approx(1, rel=0.05)
    centre = uniform(key, "emg.centre", (2,), 0, 5000).double().numpy()
    half = uniform(key, "emg.length", (2,), 0.25 * RATE, 1.5 * RATE).double().numpy()
    shape = (1 - ((np.arange(5000) - centre[..., None]) / half[..., None]) ** 2).clip(0).max(1)
    size = uniform(key, "emg.size", (1, 1), 0, 0.1) * uniform(key, "emg.lead", (3, 1))
    np.testing.assert_allclose(noise, size.numpy() * shape[:, None] * filtered, atol=2e-6)
    silent = (noise == 0).all(1).mean()
    assert 0.6 < silent < 0.95


def test_a_gain_is_one_factor_a_lead_in_its_range():
    x = torch.randn(500, 3, 50) + 5
    y = build([{"name": "lead_gain", "most": 0.1}], LEADS, (50, RATE)).signal_views(x, keys(500), RATE)
    factor = (y / x).double()
    assert torch.allclose(factor, factor[..., :1].expand_as(factor), atol=1e-5)
    drawn = factor[..., 0].numpy()
    assert stats.kstest(((drawn - 0.9) / 0.2).ravel().clip(0, 1), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("spec", "rate", "said"),
    [
        ("mains", 100.0, "view 'mains': 50 Hz needs a rate above 100 Hz, the data have 100: leave the view out"),
        ({"name": "emg", "low": 60}, 100.0, "view 'emg': low=60 Hz needs a rate above 133 Hz, the data have 100"),
        ({"name": "mains", "hz": 0}, RATE, "view 'mains': hz must be 1 to 1000, not 0"),
        ({"name": "wander", "low": 1}, RATE, "view 'wander': low and high must be 0 < low < high, not 1, 0.5"),
        ({"name": "wander", "high": 6}, RATE, "view 'wander': high must be at most 5 Hz, not 6"),
        ({"name": "emg", "bursts": 0}, RATE, "view 'emg': bursts must be 1 to 100, not 0"),
        ({"name": "lead_gain", "most": 1}, RATE, "view 'lead_gain': most must be at least 0 and below 1, not 1"),
        *(({"name": n, "sd_mv": -1}, RATE, f"view '{n}': sd_mv must be") for n in ("wander", "mains", "emg")),
    ],
)
def test_what_cannot_work_is_one_line(spec, rate, said):
    with pytest.raises(UserError, match=said):
        build([spec], LEADS, (2500, rate))


@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_at_other_rates_a_view_is_that_of_the_same_time(rate):
    assert added("wander", 4, int(10 * rate), rate)[..., :: int(rate / 100)] == pytest.approx(
        added("wander", 4, 1000, 100.0), abs=1e-5
    )
