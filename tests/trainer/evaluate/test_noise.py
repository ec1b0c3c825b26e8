"""Noise between beats: where it was added, and neither in wander, nor by a QRS, nor at a beat that was not found."""

import numpy as np
import pytest

from trainer.evaluate.delineation import delineate
from trainer.evaluate.noise import AROUND_R_S, noisy
from trainer.observe.example_ecg import synthetic_example

T = 10


def ecg(rate):
    """A clean lead [T] in mV, and its R peaks."""
    signal = synthetic_example(["II"], round(T * rate), rate)[0].astype(np.float32)
    near = round(0.3 * rate)
    peaks = [n for n in range(near, len(signal) - near) if signal[n] == signal[n - near : n + near].max() > 0.5]
    return signal, np.array(peaks, float)


def added(rate, mv, start=4.0, end=6.0, seed=0):
    """White noise of a standard deviation in mV between two times in s."""
    at = np.arange(round(T * rate)) / rate
    return np.where((start <= at) & (at < end), np.random.default_rng(seed).normal(0, mv, len(at)), 0).astype(
        np.float32
    )


def found(signal, rate, r):
    return noisy(signal, rate, np.zeros((3, len(signal)), bool), r)


@pytest.mark.parametrize("rate", [100.0, 250.0, 500.0])
def test_noise_is_found_where_it_was_added_and_there_alone(rate):
    signal, r = ecg(rate)
    assert not np.any(found(signal, rate, r))
    above = np.sqrt(1 / (1 - 2 * 25 / rate))  # white noise of this size has a standard deviation of 1 above 25 Hz
    assert not found(signal + added(rate, 0.005 * above, 0, T), rate, r)[0].any()
    noise, quiet = found(signal + added(rate, 0.03 * above), rate, r)
    at = np.arange(len(signal)) / rate
    from_r = np.abs(at[:, None] - r / rate).min(1)
    away = from_r > AROUND_R_S + 1 / rate
    assert noise[away & (at > 4.2) & (at < 5.8)].mean() > 0.95
    assert not noise[(at < 3.8) | (at > 6.2) | (from_r < AROUND_R_S)].any()
    assert quiet[away & (at > r[0] / rate) & (at < 3.8)].mean() > 0.95
    assert not (quiet & noise).any()


def test_waves_wander_and_a_beat_that_was_not_found_are_no_noise():
    rate = 100.0
    signal, r = ecg(rate)
    wander = 0.5 * np.sin(2 * np.pi * 0.3 * np.arange(len(signal)) / rate).astype(np.float32)
    assert not found(signal + wander, rate, np.delete(r, len(r) // 2))[0].any()
    waves = np.zeros((3, len(signal)), bool)
    waves[2, 450:550] = True
    noise, quiet = noisy(signal + added(rate, 0.05, 4, 8), rate, waves, r)
    assert noise.any()
    assert not (noise | quiet)[450:550].any()


@pytest.mark.parametrize("rate", [100.0, 500.0])
@pytest.mark.parametrize("bpm", [60, 90, 110, 180, 220])
@pytest.mark.parametrize("shape", [((0, 1),), ((-0.02, 1), (0.03, -0.8), (0.07, 0.4), (0.1, -0.3))])
def test_no_qrs_is_noise_whatever_its_shape_and_rate(shape, bpm, rate):
    """Narrow ones and RSR', without any noise, of which the delineation knows the R peaks alone."""
    at, r = np.arange(T * rate) / rate, np.arange(0.4, T - 0.3, 60 / bpm)
    signal = sum(mv * np.exp(-(((at - peak - after) / 0.01) ** 2) / 2) for peak in r for after, mv in shape)
    assert not found(signal.astype(np.float32), rate, np.rint(r * rate))[0].any()


@pytest.mark.parametrize(("rate", "beats"), [(50.0, None), (100.0, 1), (100.0, 0)])
def test_without_high_frequencies_or_beats_nothing_is_noisy(rate, beats):
    signal, r = ecg(rate)
    assert not np.any(found(signal + added(rate, 0.1, 0, T), rate, r[:beats]))


def test_noise_lies_between_the_waves_of_a_delineated_ecg():
    signal, _ = ecg(100.0)
    ecg_and_noise = delineate(signal + added(100.0, 0.06, 3, 8), 100.0)
    *_, between, noise, quiet = ecg_and_noise.waves
    assert noise.any()
    assert quiet.any()
    assert not ((noise | quiet) & ~between).any()
    assert ecg_and_noise.count[4] == np.sum(noise[1:] & ~noise[:-1]) + noise[0]
