import numpy as np
import pytest
from scipy.signal import resample_poly

from sharding import signal


@pytest.mark.parametrize(
    ("units", "factor"), [("mV", 1), ("mv", 1), ("", 1), ("uV", 1e-3), ("µV", 1e-3), ("V", 1e3), ("mmHg", None)]
)
def test_units(units, factor):
    assert signal.to_millivolt(units) == factor


@pytest.mark.parametrize(("source", "target"), [(500, 100), (500, 250), (400, 100), (257, 100), (360, 500), (128, 100)])
def test_resampling_is_scipys_for_signals_that_start_and_end_at_zero(source, target):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 10 * source)) * np.hanning(10 * source)
    up, down = signal.ratio(source, target)
    expected = resample_poly(x, up, down, axis=-1)
    found = signal.resample(x.astype(np.float32), source, target)
    assert found.dtype == np.float32
    assert found.shape[1] == signal.resampled_length(10 * source, source, target) == 10 * target
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("source", "target"), [(500, 250), (500, 100), (1000, 100), (100, 250), (400, 250), (257, 100)]
)
@pytest.mark.parametrize("samples", [1, 2, 5, 37, 1234, 4999, 5000])
def test_resampling_is_the_same_filter_as_scipys_beside_the_line_through_both_ends(source, target, samples):
    x = np.random.default_rng(samples).normal(size=(2, samples)).cumsum(1) + 3
    up, down = signal.ratio(source, target)
    line = x[:, :1] + (x[:, -1:] - x[:, :1]) / max(samples - 1, 1) * np.arange(samples * up + down) / up
    level = resample_poly(x - line[:, ::up][:, :samples], up, down, axis=-1)
    expected = level + line[:, ::down][:, : level.shape[1]]
    found = signal.resample(x.astype(np.float32), source, target)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_resampling_keeps_a_sine_and_an_offset():
    time = np.arange(5000) / 500
    x = (5.0 + np.sin(2 * np.pi * 3 * time))[None].astype(np.float32)
    expected = 5.0 + np.sin(2 * np.pi * 3 * np.arange(1000) / 100)
    assert np.abs(signal.resample(x, 500, 100)[0] - expected).max() < 0.02
    assert signal.resample(x, 500.0, 500.0) is x


def test_windows_span_their_source_samples():
    assert signal.span(0, 1000, 500, 100) == (0, 5000)
    assert signal.span(2, 1000, 500, 100) == (10000, 15000)
    assert signal.span(1, 1000, 257, 100) == (2570, 5140)


def ecg(scale=1.0):
    x = np.random.default_rng(1).normal(0, 0.2, (12, 1000)).astype(np.float32)
    return x * np.float32(scale)


def changed(lead, place, value):
    x = ecg()
    x[lead, place] = value
    return x


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (ecg(), ""),
        (changed(3, 10, np.nan), "nan"),
        (changed(3, 10, np.inf), "nan"),
        (changed(7, slice(None), 0.25), "flat_lead"),
        (ecg(1000.0), "units"),
        (ecg(1e-3), "units"),
        (changed(0, 5, 20.5), "amplitude"),
        (changed(0, 5, -19.5), ""),
    ],
)
def test_check(x, reason):
    assert signal.to_units(x, x, 1.0)[1] == reason


def test_units_check_names_the_unit():
    micro, volt = ecg(1000.0), ecg(1e-3)
    assert "microvolt" in signal.to_units(micro, micro, 1.0)[2]
    assert "volt" in signal.to_units(volt, volt, 1.0)[2]


def units(values: np.ndarray, resolution: float):
    return signal.to_units(values, values, resolution)


def test_units_are_rounded_and_what_does_not_fit_is_refused():
    x = np.array([[0.0014, -0.0016, 18.766]], np.float32)
    assert units(x, 1.0)[0].tolist() == [[1, -2, 18766]]
    assert units(x, 2.0)[0].tolist() == [[1, -1, 9383]]
    assert units(x, 0.5)[1:] == ("clipped", "18.8 mV at 0.5 microvolt")
    assert units(-x, 0.5)[1] == "clipped"
    assert units(np.array([[18.766, 0.0], [0.0011, 0.0014]], np.float32), 1.0)[1] == "flat_lead"
    every = np.arange(-17000, 17001, dtype=np.int16)
    assert (units((every * np.float32(1e-3))[None], 1.0)[0][0] == every).all()
    top = np.array([[-16.384, 16.3835, 0, 0, 0, 0, 0, 0]], np.float32)
    assert units(top, 0.5)[0].tolist() == [[-32768, 32767, 0, 0, 0, 0, 0, 0]]
    padded = np.array([[1.0, 1.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    assert signal.to_units(padded, padded[:1, :2], 1.0)[0].tolist() == [[1000, 1500, 0], [0, 0, 0]]
