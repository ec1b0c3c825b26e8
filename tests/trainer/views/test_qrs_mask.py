import numpy as np
import pytest
import torch

from trainer.observe.example_ecg import synthetic_example
from trainer.views import Key, build
from umbra.errors import UserError
from umbra.leads import CANONICAL


def keys(batch, view=0):
    return Key(3, 0, torch.arange(batch), view)


def beats(samples, rate, seed):
    """The times of R in `synthetic_example`, in samples."""
    drawn = np.random.default_rng(seed).standard_normal(int(samples / rate / 0.6) + 4)
    times = 0.35 + np.cumsum(0.82 + 0.03 * drawn) - 0.82
    return np.round(times[times < samples / rate - 0.05] * rate).astype(int)


def ecgs(count, rate=100.0, noise=0.02):
    """Scaled ECGs [B, 12, 10 s] and where their R waves are."""
    samples, rng = int(10 * rate), np.random.default_rng(0)
    x = np.stack([synthetic_example(CANONICAL, samples, rate, seed) for seed in range(count)])
    x = (x + noise * rng.standard_normal(x.shape)) / x.std()
    return torch.tensor(x, dtype=torch.float32), [beats(samples, rate, seed) for seed in range(count)]


def hidden(x, rate=100.0, view=0, **args):
    y = build([{"name": "qrs_mask", **args}], CANONICAL).mask_views(x, keys(len(x), view), rate)
    where = (y == 0).all(1) & (x != 0).any(1)
    assert torch.equal(torch.where(where[:, None], x, y), x)
    return where.numpy()


@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_each_complex_is_hidden_and_little_else(rate):
    x, r = ecgs(20, rate)
    where = hidden(x, rate)
    for mask, places in zip(where, r):
        assert mask[places].all()
        assert np.diff(mask.astype(int)).clip(0).sum() + mask[0] - len(places) in (0, 1)  # one is at the very end
        assert 0.1 < mask.mean() < 0.25
        middle = [np.flatnonzero(mask[p - int(0.3 * rate) : p + int(0.3 * rate)]).mean() for p in places[1:-1]]
        assert np.abs(np.array(middle) - 0.3 * rate).max() < 0.03 * rate


def test_a_share_of_the_beats_is_hidden_drawn_anew_for_each_side():
    x, r = ecgs(60)
    one, two = hidden(x, beats=0.5), hidden(x, view=1, beats=0.5)
    found = np.concatenate([mask[places] for mask, places in zip(one, r)])
    assert abs(found.mean() - 0.5) < 0.08
    assert not (one & ~hidden(x)).any()
    assert not np.array_equal(one, two)
    assert not hidden(x, beats=0).any()


def test_it_is_the_same_alone_and_in_any_batch_and_silence_has_no_complex():
    x, _ = ecgs(9)
    x[4] = 0
    whole = hidden(x, beats=0.7)
    assert not whole[4].any()
    alone = [hidden(x[: n + 1], beats=0.7)[n] for n in range(9)]
    assert np.array_equal(np.stack(alone), whole)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"beats": 2}, "view 'qrs_mask': beats must be 0 to 1, not 2"),
        ({"window_s": 0}, "view 'qrs_mask': window_s must be 0.02 to 1, not 0"),
    ],
)
def test_what_cannot_work_is_one_line(args, said):
    with pytest.raises(UserError, match=said):
        build([{"name": "qrs_mask", **args}], CANONICAL)


@pytest.mark.parametrize("rate", [50.0, 100.0, 257.5, 350.0, 500.0])
def test_a_view_is_longer_than_the_window_of_the_average(rate):
    """Shorter ones are refused when the views are built; the shortest that is not works."""
    least = int(0.02 * rate) + 1
    with pytest.raises(UserError, match=r"view 'qrs_mask': window_s=0\.12 does not fit into 0\.02 s: give"):
        build(["qrs_mask"], CANONICAL, (int(0.02 * rate), int(0.02 * rate) / 0.02))
    for window in (0.02, 0.12):
        samples = int(window * rate) + 1
        build([{"name": "qrs_mask", "window_s": window}], CANONICAL, (samples, rate))
        assert hidden(torch.randn(3, 12, samples), rate, window_s=window).shape == (3, samples)
    with pytest.raises(UserError, match="does not fit"):
        build([{"name": "qrs_mask", "window_s": least / rate}], CANONICAL, (least, rate))
