"""Fingerprints of signals: the same recording is near however it was treated, any other is far."""

import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfiltfilt

from sharding.synthetic import draw, render
from umbra.leads import CANONICAL
from umbra.signal_fingerprints import NEAR, NUMBERS, Gathered, distances, leads_of, numbers

RATE, SECONDS, PATIENTS, MARGIN = 500, 10.0, 24, 250


def made(record: int) -> np.ndarray:
    """[24 patients, II and V2, 5500] in mV at 500 Hz: 10 s and half a second around them."""
    drawn = [draw(0, patient, record, SECONDS + 2 * MARGIN / RATE, float(RATE)) for patient in range(PATIENTS)]
    return np.asarray(render(drawn))[:, [CANONICAL.index("II"), CANONICAL.index("V2")]]


@pytest.fixture(scope="module")
def ecgs() -> np.ndarray:
    return made(0)


def window(x: np.ndarray, rate: int = RATE, shift: int = 0) -> np.ndarray:
    """The 10 s in the middle, `shift` samples later."""
    start = MARGIN * rate // RATE + shift
    return x[..., start : start + round(SECONDS * rate)]


def known(x: np.ndarray, rate: int = RATE) -> np.ndarray:
    return numbers(x, rate, ("II", "V2"), SECONDS)


def at_rate(x: np.ndarray, rate: int) -> np.ndarray:
    return resample_poly(x, rate, RATE, axis=-1, padtype="line")


def rounded(x: np.ndarray, microvolt: float) -> np.ndarray:
    return np.rint(x * 1000 / microvolt).astype(np.int16)


def high_passed(x: np.ndarray, rate: int, hertz: float) -> np.ndarray:
    return sosfiltfilt(butter(2, hertz, "highpass", fs=rate, output="sos"), x, axis=-1)


def own(found: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - of, axis=1)


@pytest.mark.parametrize(
    ("name", "treat", "rate"),
    [
        ("rate 100", lambda x: window(at_rate(x, 100), 100), 100),
        ("rate 250", lambda x: window(at_rate(x, 250), 250), 250),
        ("rate 50", lambda x: window(at_rate(x, 50), 50), 50),
        ("rate 1000", lambda x: window(at_rate(x, 1000), 1000), 1000),
        ("5 microvolt", lambda x: rounded(window(x), 5), RATE),
        ("20 microvolt at 100 Hz", lambda x: rounded(window(at_rate(x, 100), 100), 20), 100),
        ("10 samples late", lambda x: window(x, shift=10), RATE),
        ("10 samples late at 100 Hz", lambda x: window(at_rate(x, 100), 100, 10), 100),
        ("10 samples early at 100 Hz", lambda x: window(at_rate(x, 100), 100, -10), 100),
        ("high-pass 0.5 Hz", lambda x: window(high_passed(x, RATE, 0.5)), RATE),
        ("an offset", lambda x: window(x) + 3, RATE),
        ("half the gain", lambda x: window(x) / 2, RATE),
        (
            "all at once",
            lambda x: rounded(high_passed(window(at_rate(x, 100), 100, 10), 100, 0.5), 5),
            100,
        ),
    ],
)
def test_a_treated_recording_is_known_again_and_no_other_is(ecgs, name, treat, rate):
    there = known(window(ecgs))
    found = known(treat(ecgs), rate)
    assert own(found, there).max() <= NEAR
    apart = np.linalg.norm(found[:, None] - there, axis=2) + 9 * np.eye(PATIENTS)
    assert apart.min() > 1.5 * NEAR


def test_another_recording_of_a_patient_is_another_recording(ecgs):
    assert own(known(window(made(1))), known(window(ecgs))).min() > 1.5 * NEAR


def test_from_a_high_rate_to_a_low_one_and_back(ecgs):
    back = resample_poly(at_rate(ecgs, 100), 5, 1, axis=-1, padtype="line")
    assert own(known(window(back)), known(window(ecgs))).max() <= NEAR


def test_fingerprints_are_of_length_one_and_do_not_depend_on_the_windows_beside_them(ecgs):
    whole = rounded(window(ecgs), 1)
    found = known(whole)
    assert found.shape == (PATIENTS, NUMBERS)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(known(whole[5:6]), found[5:6], atol=1e-6)
    gathered = Gathered(["V2", "I", "II"], float(RATE))
    for one in whole:
        gathered.add(np.stack([one[1], one[0] * 0, one[0]]))
    assert gathered.leads == ("II", "V2")
    assert np.allclose(gathered.all(), found, atol=1e-6)
    assert np.array_equal(gathered.all(), gathered.all())


def test_their_directions_are_the_same_in_every_version():
    """A line at 3 Hz and one at 7 Hz, worked out once: a change of these makes kept fingerprints useless."""
    time = np.arange(1000) / 100
    x = np.stack([np.sin(6 * np.pi * time), np.sin(14 * np.pi * time)])[None]
    assert known(x, 100)[0, [0, 1, 31, 32, 63]] == pytest.approx(
        [-0.074222, -0.064664, 0.083368, 0.025871, 0.113956], abs=1e-5
    )


def test_a_window_without_signal_is_near_to_nothing():
    empty = known(np.zeros((2, 2, 5000), np.int16))
    assert not empty.any()
    assert distances(empty, [empty])[0] > 1


def test_the_leads_that_are_looked_at():
    assert leads_of(CANONICAL) == ("II", "V2")
    assert leads_of(["V6", "V2", "I"]) == ("V2", "V6")
    assert leads_of(["I"]) == ("I",)
    assert leads_of([]) == ()
    one = numbers(np.random.default_rng(0).normal(size=(3, 1, 1000)), 100, ("I",), 10.0)
    assert one.shape == (3, NUMBERS)


def test_distances_are_those_to_the_nearest_whatever_the_tiles(monkeypatch):
    rng = np.random.default_rng(0)
    wanted, seen = (rng.normal(size=(n, NUMBERS)).astype(np.float32) for n in (50, 333))
    wanted, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wanted, seen))
    seen[200] = wanted[7]
    nearest = np.linalg.norm(wanted[:, None] - seen, axis=2).min(axis=1)
    monkeypatch.setattr("umbra.signal_fingerprints.TILE", 16)
    assert distances(wanted, [seen[:100], seen[100:]]) == pytest.approx(nearest, abs=1e-3)
    assert (distances(wanted, []) == 2).all()
