"""P waves: where synthetic recordings have them, where cardiologists marked them, and nowhere else."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from benchmarks import pwaves
from sharding import synthetic
from trainer.evaluate.delineation import Found, accepted_p, delineate, find_waves
from trainer.observe.example_ecg import synthetic_example
from umbra.errors import UserError

RATE = 100.0


def test_the_waves_of_a_synthetic_beat_are_found_where_they_were_put():
    """`synthetic_example` puts R at 0.35 s and then every 0.82 s or so, P 165 ms before it, T about 260 ms after it."""
    signal = synthetic_example(["II"], 1000, 100.0)[0].astype(np.float32)
    found = delineate(signal, 100.0)
    p, qrs, t, between, noise, quiet = found.waves
    beats = [n for n in range(60, 900) if signal[n] == signal[max(0, n - 30) : n + 30].max() and signal[n] > 0.5]
    assert len(beats) >= 9
    assert np.mean([qrs[n] for n in beats]) > 0.9
    assert np.mean([p[n - 16] for n in beats]) > 0.8
    assert np.mean([t[n + 27] for n in beats]) > 0.8
    assert 0.03 < qrs.mean() < 0.2
    assert np.array_equal(between, ~(p | qrs | t))
    assert not (noise | quiet).any()
    assert found.beats - 3 <= found.count[0] <= found.beats


def test_a_line_without_beats_is_not_delineated():
    assert delineate(np.zeros(1000, np.float32), 100.0) is None


def recordings(rhythm, noise, pr=None, p_mv=None, count=6):
    """Synthetic recordings of a rhythm; electrodes' noise times `noise`, P from `pr` s before the onset of QRS, and of
    `p_mv` in lead II (the sum of its two parts, which are 30 ms apart)."""
    drawn = (synthetic.draw(7, patient, 0) for patient in range(10_000))
    for r, _ in zip((r for r in drawn if r.rhythm == rhythm), range(count)):
        centres, vectors = r.centres.copy(), r.vectors.copy()
        onset = -synthetic.ONSET * r.widths[:, 3:4] / synthetic.WIDTHS[3]
        centres[:, synthetic.P] = onset - (pr or r.patient.pr) + 0.045 + synthetic.OFFSETS[synthetic.P]
        if p_mv is not None:
            size = (vectors[:, synthetic.P] @ r.field[1]).sum(1)[:, None, None]
            vectors[:, synthetic.P] *= np.divide(p_mv, size, out=np.zeros_like(size), where=size != 0)
        yield replace(r, centres=centres, vectors=vectors, noise=noise * r.noise)


def counted(items):
    """P waves whose peak an accepted P holds, P waves, accepted P waves and beats, of recordings in lead II."""
    sums = np.zeros(4, int)
    for r in items:
        found = delineate(resample_poly(synthetic.render([r])[0][1], 1, 5).astype(np.float32), RATE)
        if found is None:  # NeuroKit2 meets no beats in some low leads
            continue
        own = (r.beats > 0.5) & (r.beats < 9.5) & r.vectors[:, 0].any(1)
        peaks = np.rint(RATE * (r.beats + r.centres[:, synthetic.P].mean(1)))[own].astype(int)
        edge = found.waves[0, :50].any() + found.waves[0, 950:].any()
        sums += found.waves[0, peaks].sum(), len(peaks), max(0, found.count[0] - edge), found.beats
    return sums


@pytest.mark.parametrize(
    ("rhythm", "noise", "least"),
    [(synthetic.SINUS, 0.1, 0.9), (synthetic.SINUS, 0.5, 0.9), (synthetic.TACHYCARDIA, 0.1, 0.9)],
)
def test_sinus_rhythm_has_its_p_waves(rhythm, noise, least):
    held, there, given, _ = counted(recordings(rhythm, noise, p_mv=0.12))
    assert held >= least * there
    assert given <= 1.05 * held


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_no_p_is_accepted_where_the_line_is_flat(noise):
    _, _, given, beats = counted(recordings(synthetic.SINUS, noise, p_mv=0.0, count=4))
    assert given == 0
    assert beats > 40


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_fibrillation_waves_are_no_p_waves(noise):
    _, there, given, beats = counted(recordings(synthetic.FIBRILLATION, noise, count=8))
    assert there == 0
    assert given <= 0.2 * beats


@pytest.mark.parametrize(("rhythm", "pr"), [(synthetic.SINUS, 0.26), (synthetic.TACHYCARDIA, 0.24)])
def test_a_late_or_hidden_p_is_found_or_left_out_but_never_elsewhere(rhythm, pr):
    """First degree AV block, and P on the T before it."""
    held, there, given, beats = counted(recordings(rhythm, 0.1, pr=pr, p_mv=0.12))
    assert there > 40
    assert given <= held + 0.05 * beats


def line(distances, height=0.1, rate=RATE, r=None):
    """`Found` on a line of bumps of `height` mV (one or one a beat), `distances` s before R, as if each were found."""
    r = np.rint(rate * (0.8 * np.arange(len(distances)) + 1)) if r is None else r
    p = r - np.rint(rate * np.asarray(distances))
    time = np.arange(int(rate * (0.8 * len(distances) + 2)))
    bumps = np.exp(-0.5 * ((time - p[:, None]) / (0.02 * rate)) ** 2)
    start, end = np.full((2, 3, len(r)), np.nan)
    start[0], end[0] = p - 0.06 * rate, p + 0.06 * rate
    return Found((np.broadcast_to(height, len(r))[:, None] * bumps).sum(0), rate, r, p, start, end)


@pytest.mark.parametrize("rate", [100.0, 250.0, 500.0])
@pytest.mark.parametrize(
    ("distance", "height", "accepted"), [(0.16, 0.1, 1), (0.30, 0.1, 1), (0.16, 0.04, 1), (0.16, 0.025, 0)]
)
def test_a_steady_p_is_accepted_if_it_stands_out_at_any_pr_interval_and_rate(rate, distance, height, accepted):
    assert accepted_p(line([distance] * 10, height, rate)).tolist() == [accepted] * 10


def test_a_p_that_points_down_is_not_accepted():
    assert not accepted_p(line([0.16] * 10, -0.1)).any()
    assert accepted_p(line([0.16] * 10, [0.1] * 8 + [-0.1] * 2)).tolist() == [True] * 8 + [False] * 2


def test_beats_without_p_or_with_another_distance_have_none():
    assert accepted_p(line([0.16] * 10, [0.1] * 7 + [0.0] * 3)).tolist() == [True] * 7 + [False] * 3
    assert accepted_p(line([0.16] * 7 + [0.28] * 3)).tolist() == [True] * 7 + [False] * 3
    assert not accepted_p(line([0.16] * 10, [0.1] * 4 + [0.0] * 6)).any()
    assert not accepted_p(line([0.16] * 2)).any()
    nothing = line([0.16] * 10)
    nothing.start[0] = np.nan
    assert not accepted_p(nothing).any()


def test_the_nearest_of_waves_that_do_not_wait_for_the_beat_is_no_p():
    """Regular waves of 0.1 mV, 4 to 9 Hz, at R peaks of any phase; each beat is given the wave nearest to 0.16 s."""
    rng, given = np.random.default_rng(0), []
    for _ in range(300):
        hertz, beats = rng.uniform(4, 9), int(rng.integers(8, 16))
        r = np.rint(RATE * np.cumsum(rng.uniform(0.5, 1.0, beats)) + 100)
        p = np.rint(RATE * np.round((r / RATE - 0.16) * hertz) / hertz)
        start, end = np.full((2, 3, beats), np.nan)
        start[0], end[0] = p - RATE / hertz / 2, p + RATE / hertz / 2
        clean = 0.05 * np.cos(2 * np.pi * hertz * np.arange(int(r[-1]) + 100) / RATE)
        given.append(accepted_p(Found(clean, RATE, r, p, start, end)).any())
    assert np.mean(given) < 0.05


def write_ludb(folder, items):
    """Records as LUDB's: WFDB with an annotation file of lead ii, written by wfdb."""
    wfdb = pytest.importorskip("wfdb")
    for n, r in enumerate(items, start=1):
        rhythm = "Atrial fibrillation" if r.rhythm == synthetic.FIBRILLATION else "Sinus rhythm"
        signal = synthetic.render([r])[0][1:2].T
        known = {"comments": ["<age>: 51", f"Rhythm: {rhythm}."], "write_dir": str(folder)}
        wfdb.wrsamp(str(n), fs=500, units=["mV"], sig_name=["ii"], p_signal=signal, fmt=["16"], **known)
        p = r.beats + r.centres[:, synthetic.P].mean(1)
        marks = [(t, "N") for t in r.beats] + [
            mark for t, v in zip(p, r.vectors) if v[0].any() for mark in ((t - 0.05, "("), (t, "p"), (t + 0.05, ")"))
        ]
        marks = sorted((round(500 * t), symbol) for t, symbol in marks if 0.3 < t < 9.7)
        wfdb.wrann(str(n), "ii", np.array([m[0] for m in marks]), [m[1] for m in marks], write_dir=str(folder))


def test_the_benchmark_counts_what_is_annotated(tmp_path, capsys):
    sinus = list(recordings(synthetic.SINUS, 0.1, p_mv=0.12, count=2))
    write_ludb(tmp_path, [*sinus, *recordings(synthetic.FIBRILLATION, 0.1, count=2)])
    pwaves.main([f"ludb={tmp_path}"])
    out = capsys.readouterr().out
    shares = json.loads(out.splitlines()[-1])
    waves = sum(((r.beats > 0.3) & (r.beats < 9.7)).sum() - 1 for r in sinus)
    assert f"| Sinus rhythm | 2 | 2 | {waves} |" in out
    assert shares["accepted"]["sensitivity"] > 0.9
    assert shares["accepted"]["specificity"] > shares["NeuroKit2"]["specificity"]
    with pytest.raises(UserError, match=r"holds no file 1\.v9"):
        pwaves.main([f"ludb={tmp_path}", "lead=v9"])


LUDB = Path(os.environ.get("UMBRA_REAL_DATA", "")) / "ludb"


@pytest.mark.skipif(not (LUDB / "1.ii").is_file(), reason="UMBRA_REAL_DATA holds no folder ludb with LUDB's records")
def test_cardiologists_p_waves_are_kept_and_fibrillation_has_none():
    sums = {"Atrial fibrillation": np.zeros((2, 4), int), "Sinus rhythm": np.zeros((2, 4), int)}
    records = (pwaves.read(LUDB, n, "ii", 100) for n in range(1, 61))
    for known in records:
        found = find_waves(known.signal.astype(np.float32), known.rate) if known.rhythm in sums else None
        if found is not None:
            sums[known.rhythm] += pwaves.compare(known, found)
    (there, right, elsewhere, _), (_, _, _, wrong) = sums["Sinus rhythm"][1], sums["Atrial fibrillation"][1]
    assert there > 200
    assert right > 0.7 * there
    assert elsewhere < 0.02 * there
    assert wrong < 0.2 * sums["Atrial fibrillation"][0, 3]
