"""Synthetic recordings: physics of the leads, rhythms by an independent beat detector, files, determinism."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import wfdb
from scipy.signal import butter, find_peaks, sosfiltfilt

from sharding import synthetic
from sharding.sources import wfdb as reader
from sharding.synthetic import SynthConfig
from umbra.errors import UserError
from umbra.leads import CANONICAL

RATE = 250.0
SINUS = (synthetic.BRADYCARDIA, synthetic.SINUS, synthetic.TACHYCARDIA)


@pytest.fixture(scope="module")
def recordings() -> list[synthetic.Recording]:
    return [synthetic.draw(7, patient, 0, 10.0, RATE) for patient in range(240)]


@pytest.fixture(scope="module")
def clean(recordings: list[synthetic.Recording]) -> np.ndarray:
    """The same recordings without noise, `[240, 12, 2500]` in mV."""
    return synthetic.render([dataclasses.replace(r, noise=np.zeros_like(r.noise)) for r in recordings])


@pytest.fixture(scope="module")
def found(clean: np.ndarray) -> list[np.ndarray]:
    return [r_peaks(leads) for leads in clean]


def r_peaks(leads: np.ndarray, height: float = 0.15) -> np.ndarray:
    """Times (s) of the QRS complexes: energy at 12 to 40 Hz over all leads, smoothed over 80 ms, peaks 0.25 s apart."""
    band = sosfiltfilt(butter(2, (12, 40), "bandpass", fs=RATE, output="sos"), leads, axis=-1)
    energy = np.convolve((band**2).sum(axis=0), np.ones(20) / 20, mode="same")
    peaks, _ = find_peaks(energy, height=height * np.quantile(energy, 0.98), distance=int(0.25 * RATE))
    return peaks / RATE


def lead(leads: np.ndarray, name: str) -> np.ndarray:
    return leads[..., CANONICAL.index(name), :]


def of(recordings: list[synthetic.Recording], *rhythms: str) -> list[int]:
    return [i for i, r in enumerate(recordings) if r.rhythm in rhythms]


def test_limb_leads_obey_einthoven_and_goldberger(recordings: list[synthetic.Recording]) -> None:
    millivolt = synthetic.render(recordings[:16])
    for x, tolerance in ((millivolt, 1e-12), (synthetic.quantise(millivolt).astype(float), 2.0)):
        one, two, three = lead(x, "I"), lead(x, "II"), lead(x, "III")
        np.testing.assert_allclose(one + three, two, atol=tolerance)
        np.testing.assert_allclose(lead(x, "aVR"), -(one + two) / 2, atol=tolerance)
        np.testing.assert_allclose(lead(x, "aVL"), (one - three) / 2, atol=tolerance)
        np.testing.assert_allclose(lead(x, "aVF"), (two + three) / 2, atol=tolerance)
    assert np.abs(lead(millivolt, "I")).max() > 0.2


def test_without_noise_the_leads_come_from_three_dimensions(clean: np.ndarray) -> None:
    values = np.linalg.svd(clean[0], compute_uv=False)
    assert values[2] > 1e-3 * values[0]
    assert values[3] < 1e-9 * values[0]


def test_a_moved_electrode_is_seen_by_the_leads_that_use_it() -> None:
    recording = synthetic.draw(0, 0, 0, 5.0, RATE)
    silent = dataclasses.replace(recording, noise=np.zeros_like(recording.noise))
    for electrode, shift in (
        (0, {"I": -1, "II": -1, "aVR": 1, "aVL": -0.5, "aVF": -0.5, "V1": -1 / 3}),
        (2, {"II": 1, "III": 1, "aVR": -0.5, "aVL": -0.5, "aVF": 1, "V6": -1 / 3}),
        (3, {"V1": 1}),
    ):
        noise = np.zeros_like(recording.noise)
        noise[electrode] = 1.0
        moved = synthetic.render([silent, dataclasses.replace(recording, noise=noise)])
        for name in CANONICAL:
            expected = shift.get(name, -1 / 3 if electrode < 3 and name.startswith("V") else 0)
            np.testing.assert_allclose(lead(moved[1] - moved[0], name), expected, atol=1e-9, err_msg=name)


def test_rates_are_those_of_the_rhythm(recordings: list[synthetic.Recording], found: list[np.ndarray]) -> None:
    limits = {synthetic.BRADYCARDIA: (40, 60), synthetic.SINUS: (60, 100), synthetic.TACHYCARDIA: (100, 150)}
    for rhythm, (low, high) in limits.items():
        chosen = of(recordings, rhythm)
        rates = np.array([60 / np.diff(found[i]).mean() for i in chosen])
        assert len(chosen) > 20
        assert rates.min() > low - 1
        assert rates.max() < high + 1
        assert np.ptp(rates) > 0.5 * min(high - low, 16)
    irregular = np.array([60 / np.diff(found[i]).mean() for i in of(recordings, synthetic.FIBRILLATION)])
    assert irregular.min() < 75
    assert irregular.max() > 110


def test_only_fibrillation_is_irregular_throughout(
    recordings: list[synthetic.Recording], found: list[np.ndarray]
) -> None:
    def variation(i: int) -> float:
        return np.diff(found[i]).std() / np.diff(found[i]).mean()

    sinus = [variation(i) for i in of(recordings, *SINUS)]
    fibrillation = [variation(i) for i in of(recordings, synthetic.FIBRILLATION)]
    assert max(sinus) < 0.10
    assert np.median(fibrillation) > 0.12
    assert np.mean(np.array(fibrillation) > 0.08) > 0.9


def test_ventricular_beats_are_early_wide_and_followed_by_a_full_pause(
    recordings: list[synthetic.Recording], clean: np.ndarray
) -> None:
    chosen = of(recordings, synthetic.VENTRICULAR)
    assert all(recordings[i].ventricular.any() for i in chosen)
    assert not any(recordings[i].ventricular.any() for i in set(range(len(recordings))) - set(chosen))
    counts, wider = [], []
    for i in chosen:
        peaks = r_peaks(clean[i], height=0.015)
        rr, usual = np.diff(peaks), np.median(np.diff(peaks))
        early = np.flatnonzero((rr[:-1] < 0.90 * usual) & (rr[1:] > 1.06 * usual))
        counts.append(len(early))
        assert np.all(np.abs(rr[early] + rr[early + 1] - 2 * usual) < 0.2 * usual)
        wider += [width(clean[i], peaks[k + 1]) > width(clean[i], peaks[k]) for k in early]
    assert np.mean(np.array(counts) >= 1) > 0.9
    assert max(counts) <= 5
    assert np.mean(wider) > 0.85


def width(leads: np.ndarray, time: float) -> float:
    """Standard deviation (s) of the time within 0.12 s of a QRS, weighted by the squared slope."""
    around = leads[:, max(0, int((time - 0.12) * RATE)) : int((time + 0.12) * RATE)]
    weight = (np.diff(around, axis=1) ** 2).sum(axis=0)
    place = np.arange(len(weight)) / RATE
    centre = np.average(place, weights=weight)
    return float(np.sqrt(np.average((place - centre) ** 2, weights=weight)))


def test_fibrillation_has_f_waves_and_no_p_wave(
    recordings: list[synthetic.Recording], clean: np.ndarray, found: list[np.ndarray]
) -> None:
    def p_wave(i: int) -> float:
        """Size of what comes before the QRS in the mean beat, over the leads (mV)."""
        spans = [clean[i][:, int((t - 0.24) * RATE) :][:, : int(0.17 * RATE)] for t in found[i] if 0.5 < t < 9.5]
        mean = np.mean(spans, axis=0)
        hump = mean - np.linspace(mean[:, 0], mean[:, -1], mean.shape[1]).T
        return float(np.sqrt((hump**2).mean()))

    slow = [i for i in range(len(found)) if len(found[i]) <= 12]
    sinus = np.array([p_wave(i) for i in slow if recordings[i].rhythm in SINUS])
    fibrillation = np.array([p_wave(i) for i in slow if recordings[i].rhythm == synthetic.FIBRILLATION])
    assert np.median(fibrillation) < 0.5 * np.median(sinus)
    for i in of(recordings, synthetic.FIBRILLATION):
        waves = recordings[i].atrial
        assert waves is not None
        power = (np.abs(np.fft.rfft(waves, axis=1)) ** 2).sum(axis=0)
        assert 4 <= np.fft.rfftfreq(waves.shape[1], 1 / RATE)[power.argmax()] <= 9
        assert (recordings[i].vectors[:, synthetic.P] == 0).all()


def test_the_p_wave_begins_a_pr_interval_before_the_qrs() -> None:
    """From the onset of P to that of QRS, each 2.2 widths before the centre of its first kernel."""
    for patient in range(60):
        recording = synthetic.draw(4, patient, 0, 5.0, RATE)
        if recording.rhythm not in SINUS or np.diff(recording.beats).mean() < 0.7:
            continue
        normal = ~recording.ventricular
        first = [k.start for k in (synthetic.P, synthetic.QRS)]
        onset = [(recording.centres[normal, k] - 2.2 * recording.widths[normal, k]).mean() for k in first]
        assert onset[1] - onset[0] == pytest.approx(recording.patient.pr, abs=0.03)


def test_t_wave_comes_later_at_slow_rates_and_in_women() -> None:
    """QT measured in the signal as the time from R to the peak of the T loop, and as the drawn QTc."""
    rows = []
    for patient in range(400):
        recording = synthetic.draw(3, patient, 0, 5.0, RATE)
        if recording.rhythm in SINUS:
            silent = dataclasses.replace(recording, noise=np.zeros_like(recording.noise))
            size = np.linalg.norm(synthetic.render([silent])[0, 6:], axis=0)
            beat, following = recording.beats[recording.beats > 0.5][:2]
            p = following - 0.5 * (recording.patient.pr + 0.04) - 0.06  # at fast rates the next P comes soon
            after = size[int((beat + 0.15) * RATE) : int(min(beat + 0.46, p) * RATE)]
            rr = np.diff(recording.beats).mean()
            rows.append((0.15 + after.argmax() / RATE, rr, recording.patient.sex == "Female"))
    t, rr, female = np.array(rows).T
    assert np.corrcoef(t, np.cbrt(rr))[0, 1] > 0.6
    corrected = t / np.cbrt(rr)
    assert 0.005 < corrected[female == 1].mean() - corrected[female == 0].mean() < 0.035


def test_sexes_differ_with_overlap() -> None:
    patients = [synthetic.draw_patient(1, number) for number in range(1500)]
    female = np.array([p.sex == "Female" for p in patients])
    qtc = np.array([p.qtc for p in patients])
    qrs = np.array([np.linalg.norm(p.vectors[synthetic.QRS], axis=1).max() for p in patients])
    assert 0.45 < female.mean() < 0.55
    assert 0.012 < qtc[female].mean() - qtc[~female].mean() < 0.024
    assert 0.65 < np.mean(qtc[female][:, None] > qtc[~female]) < 0.88
    assert 0.60 < np.mean(qrs[female][:, None] < qrs[~female]) < 0.85
    ages = np.array([p.age for p in patients])
    assert ages.min() >= 18
    assert (ages > 89).any()


def test_noise_has_wander_mains_and_muscle_of_varying_strength() -> None:
    recordings = [synthetic.draw(2, patient, 0, 10.0, 500.0) for patient in range(60)]
    f = np.fft.rfftfreq(5000, 1 / 500)
    power = np.stack([(np.abs(np.fft.rfft(r.noise, axis=1)) ** 2).mean(axis=0) for r in recordings])
    for mains in (50.0, 60.0):
        mine = [r.patient.mains == mains for r in recordings]
        spectrum = np.median(power[mine], axis=0)
        assert 5 < sum(mine) < 55
        assert spectrum[f == mains] > 10 * np.median(spectrum[(abs(f - mains) > 1) & (abs(f - mains) < 5)])
    slow = power[:, (f > 0) & (f < 0.7)].sum(axis=1)
    muscle = power[:, (f > 20) & (f < 45)].sum(axis=1)
    for level in (slow, muscle):
        assert np.quantile(level, 0.9) > 10 * np.quantile(level, 0.1)
    np.testing.assert_array_less(power[:, (f > 5) & (f < 10)].mean(axis=1), power[:, (f > 0) & (f < 0.7)].max(axis=1))


def test_records_read_back_with_wfdb(tmp_path: Path) -> None:
    synthetic.write(SynthConfig(str(tmp_path / "out"), patients=3, records_per_patient=2, seed=4), progress=False)
    names = (tmp_path / "out" / "RECORDS").read_text().split()
    assert names == [f"P00/P{patient:05d}_{record}" for patient in range(3) for record in (1, 2)]
    assert sorted(names) == reader.find(tmp_path / "out")
    for name, (patient, record) in zip(names, [(p, r) for p in range(3) for r in range(2)]):
        drawn = synthetic.draw(4, patient, record)
        theirs = wfdb.rdrecord(str(tmp_path / "out" / name))
        digital = wfdb.rdrecord(str(tmp_path / "out" / name), physical=False)
        assert (theirs.fs, theirs.sig_len, tuple(theirs.sig_name), set(theirs.units)) == (500, 5000, CANONICAL, {"mV"})
        assert digital.calc_checksum() == digital.checksum
        assert digital.d_signal[0].tolist() == digital.init_value
        np.testing.assert_allclose(theirs.p_signal.T, synthetic.render([drawn])[0], atol=0.000501)
        assert theirs.comments == [
            f"Age: {drawn.patient.age}",
            f"Sex: {drawn.patient.sex}",
            f"Dx: {drawn.rhythm}",
            f"Patient ID: P{patient:05d}",
        ]
        assert reader.read(tmp_path / "out", name, CANONICAL).flags == ()


def test_a_record_depends_on_nothing_but_seed_patient_and_number(tmp_path: Path) -> None:
    few, many, other = (SynthConfig(str(tmp_path / n), seconds=5, rate=100) for n in ("few", "many", "other"))
    few.patients, many.patients, many.records_per_patient, other.patients, other.seed = 2, 41, 2, 2, 1
    for config in (few, many, other):
        synthetic.write(config, progress=False)
    for path in sorted((tmp_path / "few" / "P00").iterdir()):
        assert path.read_bytes() == (tmp_path / "many" / "P00" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / "P00" / path.name).read_bytes()
    drawn = [synthetic.draw(5, patient, 0) for patient in range(5)]
    together = synthetic.render(drawn)
    assert all(np.array_equal(together[i], synthetic.render([drawn[i]])[0]) for i in range(5))


def test_recordings_of_a_patient_share_the_patient_only() -> None:
    one, two, stranger = synthetic.draw(0, 8, 0), synthetic.draw(0, 8, 1), synthetic.draw(0, 9, 0)
    assert np.array_equal(one.patient.vectors, two.patient.vectors)
    assert not np.array_equal(one.noise, two.noise)
    assert not np.allclose(one.patient.vectors, stranger.patient.vectors, rtol=0.1)


def test_a_finished_folder_is_left_alone_and_an_interrupted_one_completed(tmp_path: Path) -> None:
    config = SynthConfig(str(tmp_path / "out"), patients=2, seconds=5, rate=100)
    synthetic.write(config, progress=False)
    (header,) = (tmp_path / "out").rglob("P00001_1.hea")
    text = header.read_text()
    header.write_text("mine")
    synthetic.write(config, progress=False)
    assert header.read_text() == "mine"
    (tmp_path / "out" / "RECORDS").unlink()
    synthetic.write(config, progress=False)
    assert header.read_text() == text
    with pytest.raises(UserError, match="other settings"):
        synthetic.write(dataclasses.replace(config, seed=1), progress=False)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        synthetic.write(SynthConfig(str(tmp_path)), progress=False)
    with pytest.raises(UserError, match=r"precious.txt is not a folder"):
        synthetic.write(SynthConfig(str(tmp_path / "precious.txt")), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(("key", "value"), [("patients", 0), ("seconds", 2), ("rate", 20), ("seed", -1)])
def test_impossible_settings_are_refused(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{key}={value}"):
        synthetic.write(SynthConfig(str(tmp_path / "out"), **{key: value}), progress=False)
    assert not (tmp_path / "out").exists()
