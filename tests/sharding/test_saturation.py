"""Extremes at the limits of a format are kept, plateaus are refused: on files that wfdb, h5py and pydicom wrote."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import wfdb as library

from sharding import build as building
from sharding.options import BuildConfig
from sharding.report import summary
from sharding.saturation import RUN, converter, saturation
from sharding.sources import clinical, wfdb
from sharding.sources.protocol import SourceConfig
from sharding.verify import verify
from tests.support.dicom import dicom
from tests.support.recordings import LEADS, beats, write_record
from umbra.config import load
from umbra.schema import read_manifest

BITS = {"16": 16, "24": 24, "32": 32, "80": 8, "212": 12}
real_data = os.environ.get("UMBRA_REAL_DATA")


def ecg(seed: int, rate: float = 500.0, seconds: float = 10.0, noise: float = 0.0) -> np.ndarray:
    """A smooth ECG in mV, [samples, 12]: P, Q, R, S and T as Gaussians, and the wander of the breath."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds))[:, None] / rate
    phase = (time + rng.uniform()) % rng.uniform(0.6, 1.1)
    x = 0.1 * np.sin(2 * np.pi * 0.25 * time + rng.uniform(0, 6, 12))
    for center, width, size in (
        (0.1, 0.02, 0.1),
        (0.22, 0.008, -0.1),
        (0.25, 0.01, 1),
        (0.28, 0.01, -0.3),
        (0.45, 0.04, 0.3),
    ):
        x = x + size * rng.uniform(-1.5, 1.5, 12) * np.exp(-(((phase - center) / width) ** 2) / 2)
    return x + noise * rng.normal(size=x.shape)


def clipped(mv: np.ndarray, share: float = 0.5) -> np.ndarray:
    """What a converter makes of it whose range ends at a share of the way from each lead's median to its maximum."""
    middle = np.median(mv, axis=0)
    return np.minimum(mv, middle + share * (mv.max(axis=0) - middle))


def digital(mv: np.ndarray, bits: int) -> np.ndarray:
    """[leads, samples]: each lead over the whole range of `bits`."""
    low, high, half = mv.min(axis=0), mv.max(axis=0), (1 << (bits - 1)) - 1
    return np.rint((mv - low) / (high - low) * 2 * half - half).astype(np.int64).T


def write(folder: Path, name: str, mv: np.ndarray, form: str, rate: float = 500.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.wrsamp(name, rate, ["mV"] * 12, list(LEADS), p_signal=mv, fmt=[form] * 12, write_dir=str(folder))


def build(root: Path, output: Path, *words: str) -> building.Outcome:
    fixed = [f"input={root}", f"output={output}", "source.public=true", "split.train=1", "split.val=0", "split.test=0"]
    return building.build(load(BuildConfig, None, [*fixed, *words]))


def judged(values: np.ndarray, bits: int = 16, rate: float = 500.0) -> tuple[list[int], list[int]]:
    """(samples at a limit, saturated samples) of `values` [leads, samples] at `rate` Hz."""
    half = 1 << (bits - 1)
    limits = [(1 - half, half - 1)] * len(values)
    at, saturated = saturation(values, limits, limits, rate)
    places = [[] if mask is None else np.flatnonzero(mask).tolist() for mask in (at, saturated)]
    return places[0], places[1]


# ---- the rule ----


def test_a_plateau_of_three_is_saturated_one_of_two_is_counted():
    assert RUN == 3
    x = beats(1).T.copy()
    x[0, 100:103], x[3, 500:502], x[5, 700] = 32767, 32767, -32767
    assert judged(x) == ([100, 101, 102, 500, 501, 700], [100, 101, 102])
    assert judged(beats(1).T) == ([], [])


@pytest.mark.parametrize("bits", [8, 12, 16, 24])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_extremes_at_the_limits_are_no_plateaus_at_any_resolution_and_clipped_peaks_are(bits, noise):
    for seed in range(20):
        mv = ecg(seed, noise=noise)
        at, saturated = judged(digital(mv, bits), bits)
        assert len(at) >= 12
        assert not saturated, seed
        assert judged(digital(clipped(mv), bits), bits)[1], seed


def smooth(top: float, seconds: float, rate: float) -> np.ndarray:
    """[1, samples]: a slow wave of 16 bits, cut off at the upper limit for `seconds`, which it meets in small steps."""
    time = np.arange(round(10 * rate)) / rate
    wave = top * np.minimum(np.cos(2 * np.pi * (time - 5) / 20), np.cos(np.pi * seconds / 20))
    return np.rint(wave - wave.max() + 32767).astype(np.int64)[None]


@pytest.mark.parametrize("rate", [100.0, 500.0, 1000.0])
def test_a_limit_is_met_in_small_steps_and_held(rate):
    for seconds in (0.35, 0.5, 3.0):
        x = smooth(500, seconds, rate)
        assert np.diff(x).max() <= 2
        at, saturated = judged(x, rate=rate)
        assert at == saturated
        assert len(at) >= seconds * rate
    top = 32767 - np.abs(np.arange(round(0.29 * rate)) // round(0.28 * rate))  # 0.28 s at the limit: a peak may be
    assert not judged(np.r_[smooth(500, 3.0, rate)[0] - 5, top][None], rate=rate)[1]


@pytest.mark.parametrize(("count", "refused"), [(4, False), (6, True)])
def test_a_limit_held_for_a_share_of_ten_seconds(count, refused):
    """0.1 s each: one step below the limit before and after, so that none is a plateau by itself."""
    x = np.tile(np.r_[np.arange(200), np.arange(200)[::-1]], 40)[:15000]
    x[5000:10000] += 32766 - 199 - x[5000:10000].max() + 199
    for number in range(count):
        x[5500 + 600 * number : 5550 + 600 * number] = 32767
        x[[5499 + 600 * number, 5550 + 600 * number]] = 32766
    assert bool(judged(x[None])[1]) == refused
    assert len(judged(x[None])[0]) == 50 * count


def test_a_signal_of_repeated_samples_is_compared_with_itself():
    mv = np.repeat(ecg(1, 100), 5, axis=0)
    assert judged(digital(mv, 16))[1] == []
    assert judged(digital(clipped(mv), 16))[1]


def test_padding_at_a_limit_is_no_saturation_and_leads_that_all_end_at_limits_are():
    x = digital(np.abs(ecg(1)), 12)
    x[:, 4000:] = np.arange(12)[:, None]
    x[4, 4000:] = 2047
    assert judged(x, 12)[1] == []
    x[:, 4000:] = np.where(np.arange(12) % 2, 2047, -2047)[:, None]
    at, saturated = judged(x, 12)
    assert set(range(4000, 5000)) <= set(saturated) <= set(at)
    assert judged(np.full((2, 50), 2047), 12)[1] == []  # a lead that never changes has its own reason


def test_a_gap_and_a_rest_far_away_do_not_hide_a_plateau():
    x = np.concatenate([digital(ecg(seed), 16) // 2 for seed in range(4)], axis=1)
    x[:, 5:400] = -32768
    x[2, 700:1500] = 0
    x[2, 17000:17010] = 32767
    assert judged(x)[1] == list(range(17000, 17010))


def test_limits_of_a_stated_resolution():
    wide = (-32767, 32767)
    assert converter(12, 0, wide) == (-2048, 2047)
    assert converter(11, 1024, wide) == (0, 2047)
    assert converter(16, 0, wide) == converter(24, 0, wide) == converter(0, 0, wide) == converter(99, 0, wide) == wide


# ---- WFDB ----


@pytest.mark.parametrize("form", BITS)
def test_what_wrsamp_writes_by_default_is_kept(tmp_path, form):
    for seed in range(10):
        write(tmp_path / "in", f"r{seed}", ecg(seed, noise=0.01 * (seed % 2)), form)
    write(tmp_path / "in", "clipped", clipped(ecg(10)), form)
    outcome = build(tmp_path / "in", tmp_path / "out")
    assert (outcome.kept, dict(outcome.rejected)) == (10, {"saturated": 1})
    assert outcome.flags["at_limit"] == 10
    assert read_manifest(tmp_path / "out").counts["flags"] == {"at_limit": 10}
    assert summary(tmp_path / "out")["flags"] == {"at_limit": 10}
    verify(tmp_path / "out")
    details = pq.read_table(tmp_path / "out/private/records.parquet").to_pylist()
    for row in details:
        assert "samples at the converter's limits" in row["detail"] or row["record"] == "clipped"


@pytest.mark.skipif(not real_data, reason="UMBRA_REAL_DATA names no folder of WFDB records")
@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize(("folder", "rate"), [("ptbxl100", 100), ("cinc2021_raw", 500), ("code15_subset", 400)])
def test_real_ecgs_that_wrsamp_wrote_are_kept_and_clipped_ones_refused(tmp_path, folder, rate, form):
    root = Path(real_data) / folder
    names = wfdb.find(root)
    written = 0
    for number, record in enumerate(names[:: len(names) // 10]):
        recording = wfdb.read(root, record, LEADS)
        mv = recording.mv[:, : 10 * rate].T.astype(float)
        if recording.at_limit is None and np.abs(mv).max() < 10 and (np.ptp(mv, axis=0) > 0).all():
            write(tmp_path / "good", f"r{number}", mv, form, rate)
            write(tmp_path / "clipped", f"r{number}", clipped(mv), form, rate)
            written += 1
    assert written >= 5
    good, bad = (
        [wfdb.read(tmp_path / kind, r, LEADS) for r in wfdb.find(tmp_path / kind)] for kind in ("good", "clipped")
    )
    assert not [r for r in good if r.at_limit is None or r.saturated is not None]
    # wrsamp rounds the baseline: at 8 bits a clipped top may come to lie a step below the limit
    assert sum(r.saturated is not None for r in bad) >= (0.6 if form == "80" else 0.9) * written


@pytest.mark.parametrize(
    ("bits", "zero", "reason"),
    [(12, 0, "saturated"), (12, 1000, "none"), (12, 100, "saturated"), (16, 0, "none"), (0, 0, "none"), (9, 0, "none")],
)
def test_a_converter_of_fewer_bits_than_the_format(tmp_path, bits, zero, reason):
    """Clipped at 2047 or 2147; a resolution that samples go beyond (9 bits) is wrong and not used."""
    x = np.clip(np.rint(3000 * ecg(1)).astype(int), -5000, 2047) if zero != 100 else np.clip(3000 * ecg(1), -5000, 2147)
    x = np.maximum(x, -1948).astype("<i2")
    write_record(tmp_path, "r", x, 500.0)
    header = (tmp_path / "r.hea").read_text().replace("/mV 16 0 ", f"/mV {bits} {zero} ")
    (tmp_path / "r.hea").write_text(header)
    found = wfdb.read(tmp_path, "r", LEADS)
    assert (found.saturated is None) == (reason == "none")
    if reason == "saturated":
        top = (x == x.max()).any(axis=1)
        assert set(np.flatnonzero(found.saturated)) <= set(np.flatnonzero(top | (x == -1948).any(axis=1)))


@pytest.mark.parametrize("bits", ["x", "-3", "1e3", "99999999999999999999"])
def test_a_resolution_that_is_no_number_is_not_known(tmp_path, bits):
    write_record(tmp_path, "r", beats(1))
    (tmp_path / "r.hea").write_text((tmp_path / "r.hea").read_text().replace("/mV 16 0 ", f"/mV {bits} 0 "))
    assert wfdb.read(tmp_path, "r", LEADS).at_limit is None


# ---- arrays and clinical files ----


def test_integers_of_hdf5(tmp_path):
    words = [
        "source.format=hdf5",
        "source.name=own",
        "source.array.rate=500",
        f"source.array.leads=[{','.join(LEADS)}]",
    ]
    values = np.stack([digital(ecg(n), 16) for n in range(4)] + [digital(clipped(ecg(n)), 16) for n in range(2)])
    for name, data, scale in (
        ("signed", values.astype("i2"), 1e-4),
        ("unsigned", (values + 32767).astype("u2"), 1e-4),
        ("wide", values.astype("i4"), 1e-4),
        ("float", values.astype("f4"), 1e-4),
    ):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "a.h5", "w") as file:
            file["tracings"] = data + (name == "unsigned") * np.uint16(1) if name == "unsigned" else data
        outcome = build(tmp_path / name, tmp_path / f"{name}_out", *words, f"source.array.units='{scale}'")
        whole = name in ("wide", "float")  # integers far from their limits, and floats, which have none
        assert dict(outcome.rejected) == ({} if whole else {"saturated": 2}), name
        assert outcome.flags["at_limit"] == (0 if whole else 4), name


@pytest.mark.parametrize(("kind", "offset"), [("i2", 0), ("i4", 0), ("u2", 2048)])
@pytest.mark.parametrize(("bits", "refused"), [(12, 2), (0, 0), (16, 0), (9, 0)])
def test_bits_of_the_converter_of_an_array(tmp_path, kind, offset, bits, refused):
    """12 bits in a wider type: 9, which samples go beyond, are not the converter's."""
    values = np.stack([digital(ecg(n), 12) for n in range(3)] + [digital(clipped(ecg(n)), 12) for n in range(2)])
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", (values + offset).astype(kind))
    words = ["source.format=table", "source.array.rate=500", f"source.array.leads=[{','.join(LEADS)}]"]
    outcome = build(tmp_path / "in", tmp_path / "out", *words, "source.array.units=uV", f"source.array.bits={bits}")
    assert outcome.rejected.get("saturated", 0) == refused
    assert outcome.flags["at_limit"] == (3 if refused else 0)


def test_zeros_of_an_unsigned_type_are_no_limit(tmp_path):
    values = np.maximum(1000 * ecg(1), 0).astype("u2").T
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", values)
    words = ["source.format=table", "source.array.rate=500", f"source.array.leads=[{','.join(LEADS)}]"]
    assert build(tmp_path / "in", tmp_path / "out", *words, "source.array.units=uV").kept == 1


def test_dicom_of_twelve_bits(tmp_path):
    codes = tuple(f"2:{n}" for n in (1, 2))
    x = np.rint(2000 * ecg(2)[:, :2]).astype(int)
    for name, bits, values in (
        ("whole", 12, np.clip(x, -2000, 2000)),
        ("clipped", 12, np.clip(x, -300, 300) * 2047 // 300),
        ("sixteen", 16, np.clip(x, -300, 300) * 2047 // 300),
        ("wrong", 12, x * 3),
    ):
        dicom(tmp_path / f"{name}.dcm", values.tolist(), labels=codes, WaveformBitsStored=bits)
        found = clinical.read(tmp_path, f"{name}.dcm", ["I", "II"], SourceConfig(format="clinical"))
        assert (found.saturated is not None) == (name == "clipped"), name
