"""Resampling on the device against that of shards, which `tests/sharding/test_signal.py` holds against scipy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import firwin

from sharding import signal
from umbra.encoders.resampling import _products, low_pass, resample, seen

RATES = [
    (500, 100),
    (400, 100),
    (1000, 100),
    (100, 500),
    (257, 100),
    (360, 500),
    (128, 100),
    (499.9, 100),
    (99.99, 100),
]


def resampled(x, source, target, start, stop, dtype=torch.float64):
    up, down = signal.ratio(source, target)
    return resample(torch.from_numpy(x), up, down, start, stop, torch.device("cpu"), dtype).numpy()


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("samples", [1, 2, 37, 5000])
def test_it_is_that_of_the_shards(source, target, samples):
    x = np.random.default_rng(samples).normal(size=(2, samples)).cumsum(1) + 3
    expected = signal.resample(x.astype(np.float32), source, target)
    most = np.abs(expected).max()
    found = resampled(x, source, target, 0, expected.shape[1])
    np.testing.assert_allclose(found, expected, atol=2e-6 * most, rtol=0)
    found = resampled(x, source, target, 0, expected.shape[1], torch.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5 * most, rtol=0)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_pieces_are_those_of_the_whole(source, target):
    x = np.random.default_rng(0).normal(size=(2, 2, 20000)).cumsum(-1)
    length = signal.resampled_length(20000, source, target)
    whole, cuts = resampled(x, source, target, 0, length), [0, 1, length // 3, length // 2 + 7, length]
    parts = [resampled(x, source, target, a, b) for a, b in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(parts, -1), whole, atol=1e-9)


def test_what_is_not_seen_does_not_matter():
    x = np.random.default_rng(0).normal(size=(1, 5000))
    first, last = seen(400, 500, 1, 5)
    other = np.full_like(x, 1e3)
    other[:, [0, -1]], other[:, first:last] = x[:, [0, -1]], x[:, first:last]
    np.testing.assert_array_equal(resampled(other, 500, 100, 400, 500), resampled(x, 500, 100, 400, 500))
    other[:, first + 1] += 1  # the outermost weight is 0
    assert (resampled(other, 500, 100, 400, 500) != resampled(x, 500, 100, 400, 500)).sum() == 1


@pytest.mark.parametrize(("up", "down"), [(1, 5), (5, 1), (100, 257), (1000, 4999)])
def test_the_filter_is_scipys(up, down):
    widest = max(up, down)
    expected = up * firwin(20 * widest + 1, 1 / widest, window=("kaiser", 5.0))
    np.testing.assert_allclose(low_pass(up, down), expected, atol=1e-12)


@pytest.mark.parametrize(("up", "down", "period"), [(1, 20, 1), (5, 18, 5), (100, 257, 25), (64, 125, 1)])
def test_weights_that_repeat_are_held_once(up, down, period):
    """Of a long record: 12 leads at 2 kHz took 4 GiB."""
    inputs, weights = _products(up, down, 0, 64000)
    assert len(weights) == period
    assert inputs.shape == (1000, weights.shape[1])
    assert len(_products(up, down, 0, 100)[1]) == min(period, 2)
