"""Every WFDB format and layout against bits packed by hand, and against the package wfdb where that is right."""

import os
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import wfdb as reference

from sharding.sources import wfdb, wfdb_fast, wfdb_library, wfdb_signals
from sharding.sources.protocol import Rejected
from sharding.sources.wfdb_formats import FORMATS
from tests.support import wfdb_files
from tests.support.recordings import LEADS
from tests.support.wfdb_files import BITS

NAMES = ("I", "II", "V1", "V2", "V3")
LIBRARY = ("8", "310", "311", "508", "516", "524")


def noise(form: str, samples: int, seed: int = 0, gaps: bool = True) -> np.ndarray:
    """Any values that a format can hold, its extremes and its marker of a missing sample among them."""
    rng = np.random.default_rng([int(form), seed])
    if form == "8":
        return rng.integers(-127, 127, samples).cumsum()
    top = 1 << BITS[form] - 1
    x = rng.integers(-top + 1, top, samples)
    x[:2] = top - 1, -top + 1
    if gaps:
        x[rng.integers(0, samples, 3)] = -top
    return x


def theirs(folder: Path, name: str = "r") -> list[np.ndarray]:
    return reference.rdrecord(str(folder / name), physical=False, smooth_frames=False).e_d_signal


def theirs_of_61(folder: Path) -> list[np.ndarray]:
    """wfdb 4.3.1 reads 61 as means of the samples of a frame alone."""
    return list(reference.rdrecord(str(folder / "r"), physical=False).d_signal.T)


def equal(found, expected) -> bool:
    return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("lead", [0, 24])
@pytest.mark.parametrize(
    ("form", "per_frame"),  # signals of a FLAC file have one number of samples a frame
    [(f, n) for f in BITS for n in [(1, 1, 1), (1,), (2, 2), (3, 1)] if n != (3, 1) or not f.startswith("5")],
)
def test_every_format_against_bits_packed_by_hand(tmp_path, form, per_frame, lead):
    for frames in (200, 201, 202):
        signals = [noise(form, frames * n, seed) for seed, n in enumerate(per_frame)]
        wfdb_files.write(tmp_path, "r", [(form, signals, per_frame)], NAMES, lead=lead)
        assert equal(wfdb.digital(tmp_path, "r"), signals)
        if form != "61" or max(per_frame) == 1:
            assert equal((theirs_of_61 if form == "61" else theirs)(tmp_path), signals)
        head = wfdb.head(tmp_path, "r")
        assert head.reader == ("wfdb" if form in LIBRARY else "fast")
        common = np.gcd.reduce(per_frame)
        assert (head.rate, head.samples) == (500 * common, frames * common)
        assert wfdb.read(tmp_path, "r", ["I"]).flags == ()  # the check sum is of all samples


@pytest.mark.parametrize("form", BITS)
def test_any_part_of_a_record_is_that_part_of_the_whole(tmp_path, form):
    """wfdb itself begins format 8 at the initial value wherever it starts to read."""
    signals = [noise(form, 400, seed) for seed in range(3)]
    wfdb_files.write(tmp_path, "r", [(form, signals, (2, 2, 2))], NAMES, rate=100)
    whole = wfdb.read(tmp_path, "r", NAMES[:3])
    expected = np.stack([np.where(s == FORMATS[form].lowest, 0, s) for s in signals]) / 200
    np.testing.assert_allclose(whole.mv, expected, rtol=1e-6)
    assert (whole.missing is not None and whole.missing.any()) == (form != "8")
    for first, last in [(0, 400), (1, 7), (2, 3), (33, 400), (101, 302), (398, 399)]:
        part = wfdb.read(tmp_path, "r", NAMES[:3], span=(first, last))
        assert np.array_equal(part.mv, whole.mv[:, first:last])
        for name in ("missing", "saturated"):
            marks, all_marks = getattr(part, name), getattr(whole, name)
            none = np.zeros(last - first, bool)
            expected = none if all_marks is None else all_marks[first:last]
            assert np.array_equal(none if marks is None else marks, expected)


@pytest.mark.parametrize(
    ("form", "data", "values"),
    [
        ("310", [0x02, 0x00, 0xFE, 0xFF], [1, -1, -32]),  # words 0x0002 and 0xFFFE: 1, -1, high half of the third
        ("310", [0x03, 0xF8, 0x01, 0xF8], [1, 0, -1]),
        ("311", [0x01, 0xFC, 0x0F, 0x20], [1, -1, -512]),
        ("311", [0xFF, 0x07, 0x00, 0xFF], [-1, 1, -16]),  # the unused bits 30 and 31 are set
        ("8", [1, 0xFF, 0x80, 0x7F, 5, 5], [11, 10, -118, 9, 14, 19]),
    ],
)
def test_bytes_typed_by_hand(tmp_path, form, data, values):
    (tmp_path / "r.dat").write_bytes(bytes(data))
    (tmp_path / "r.hea").write_text(f"r 1 100 {len(values)}\nr.dat {form} 200/mV 10 0 10 0 0 I\n")
    assert wfdb.digital(tmp_path, "r")[0].tolist() == values


@pytest.mark.parametrize("form", ["310", "311"])
def test_bits_that_a_format_leaves_unused_are_not_looked_at(tmp_path, form):
    signals = [noise(form, 300)]
    wfdb_files.write(tmp_path, "r", [(form, signals, (1,))], NAMES)
    (tmp_path / "r_0.dat").write_bytes(wfdb_files.pack(form, signals[0].tolist(), unused=1))
    assert equal(wfdb.digital(tmp_path, "r"), signals)
    assert equal(theirs(tmp_path), signals) == (form == "310")  # wfdb 4.3.1 misreads 311: no correction is needed then


def test_format_8_without_an_initial_value_begins_at_the_adc_zero(tmp_path):
    (tmp_path / "r.dat").write_bytes(bytes([1, 1, 1]))
    (tmp_path / "r.hea").write_text("r 1 100 3\nr.dat 8 200/mV 10 7\n")
    assert wfdb.digital(tmp_path, "r")[0].tolist() == [8, 9, 10]


def test_signals_in_several_files_of_several_formats(tmp_path):
    forms = ("212", "516", "8", "16", "311")
    files = [(form, [noise(form, 500, gaps=False)], (1,)) for form in forms]
    wfdb_files.write(tmp_path, "r", files, NAMES)
    expected = [signals[0] for _, signals, _ in files]
    assert equal(wfdb.digital(tmp_path, "r"), expected)
    assert equal(theirs(tmp_path), expected)
    assert wfdb.head(tmp_path, "r").reader == "wfdb"
    found = wfdb.read(tmp_path, "r", ["V3", "I"], span=(7, 400))
    np.testing.assert_allclose(found.mv, np.stack([expected[4], expected[0]])[:, 7:400] / 200, rtol=1e-6)
    assert found.saturated is None or not found.missing.any()


@pytest.mark.parametrize("form", ["16", "212", "516", "310"])
@pytest.mark.parametrize("n", [1, 3])
def test_skew_is_taken_out_and_leaves_missing_samples_at_the_end(tmp_path, form, n):
    """The samples before sample 0 count into the check sum.

    wfdb fails on several skews and on skew in FLAC, and marks but one sample a frame of the missing ones.
    """
    signals = [noise(form, 300 * n, seed, gaps=False) for seed in range(3)]
    for skews in ((0, 5, 5), (0, 5, 2)):
        wfdb_files.write(tmp_path, "r", [(form, signals, (n,) * 3)], NAMES, rate=100, skew=skews)
        expected = [np.append(s[k * n :], [FORMATS[form].lowest] * (k * n)) for s, k in zip(signals, skews)]
        assert equal(wfdb.digital(tmp_path, "r"), expected)
        if skews == (0, 5, 5) and form != "516":
            assert equal(theirs(tmp_path), expected) == (n == 1)
    whole = wfdb.read(tmp_path, "r", ["I", "II", "V1"])
    assert np.flatnonzero(whole.missing).tolist() == list(range(295 * n, 300 * n))
    assert whole.flags == ()
    part = wfdb.read(tmp_path, "r", ["II"], span=(50, 290 * n))
    np.testing.assert_allclose(part.mv[0], expected[1][50 : 290 * n] / 200, rtol=1e-6)


# ---- several samples a frame ----


def test_ecg_leads_of_many_samples_a_frame_keep_them_all(tmp_path):
    """As in MIMIC's waveforms: frames of 62.5 Hz, ECG four samples a frame, other signals fewer."""
    ecg, pleth = [noise("16", 4000, seed, gaps=False) for seed in (1, 2)], noise("16", 2000, gaps=False)
    wfdb_files.write(tmp_path, "r", [("16", [*ecg, pleth], (4, 4, 2))], ("I", "II", "PLETH"), rate=62.5)
    head = wfdb.head(tmp_path, "r")
    assert (head.rate, head.samples) == (250, 4000)
    found = wfdb.read(tmp_path, "r", ["I", "II"])
    assert found.rate == 250
    np.testing.assert_allclose(found.mv, np.stack(ecg) / 200, rtol=1e-6)


def test_gaps_are_left_out_of_means(tmp_path):
    """wfdb takes the marker of a missing sample for a number, and cuts means towards zero."""
    one = [100, -32768, 100, 100] + [-32768] * 4 + [1, 2, 2, 2] + [-1, -2, -2, -2] + [32767, 0, 0, 0]
    two = [5, 6, 7, 8, 9]
    wfdb_files.write(tmp_path, "r", [("16", [one, two], (4, 1))], ("I", "II"), rate=100)
    found = wfdb.read(tmp_path, "r", ["I", "II"])
    np.testing.assert_allclose(found.mv[0] * 200, [100, 0, 1.75, -1.75, 32767 / 4], rtol=1e-6)
    np.testing.assert_allclose(found.mv[1] * 200, [5, 6, 7, 8, 9], rtol=1e-6)
    assert found.missing.tolist() == [False, True, False, False, False]
    assert found.at_limit.tolist() == [False, False, False, False, True]
    assert found.saturated is None
    assert reference.rdrecord(str(tmp_path / "r"), physical=False).d_signal[0, 0] == -8117
    assert wfdb.digital(tmp_path, "r")[0].tolist() == one


def test_a_plateau_in_one_of_several_samples_a_frame_saturates_its_block(tmp_path):
    fine = noise("16", 400, 1, gaps=False) // 4
    fine[200:206] = 32767
    wfdb_files.write(
        tmp_path, "r", [("16", [fine, noise("16", 100, 2, gaps=False) // 4], (4, 1))], ("I", "II"), rate=100
    )
    found = wfdb.read(tmp_path, "r", ["I", "II"])
    assert np.flatnonzero(found.saturated).tolist() == [50, 51]
    assert np.flatnonzero(found.at_limit).tolist() == [50, 51]
    part = wfdb.read(tmp_path, "r", ["I", "II"], span=(51, 100))
    assert np.flatnonzero(part.at_limit).tolist() == [0]


def test_leads_of_several_numbers_of_samples_a_frame_come_to_the_common_one(tmp_path):
    i, two = noise("212", 600, 1, gaps=False), noise("212", 400, 2, gaps=False)
    wfdb_files.write(tmp_path, "r", [("212", [i, two], (6, 4))], ("I", "II"), rate=50)
    assert (wfdb.head(tmp_path, "r").rate, wfdb.head(tmp_path, "r").samples) == (100, 200)
    found = wfdb.read(tmp_path, "r", ["I", "II"])
    np.testing.assert_allclose(found.mv[0], i.reshape(-1, 3).mean(axis=1) / 200, rtol=1e-5)
    np.testing.assert_allclose(found.mv[1], two.reshape(-1, 2).mean(axis=1) / 200, rtol=1e-5)
    part = wfdb.read(tmp_path, "r", ["I", "II"], span=(13, 90))
    assert np.array_equal(part.mv, found.mv[:, 13:90])


def test_a_wide_file_is_read_step_by_step(tmp_path, monkeypatch):
    files = [("16", [noise("16", 300 * n, n) for n in (1, 50, 1)], (1, 50, 1))]
    wfdb_files.write(tmp_path, "r", files, ("I", "EMG", "II"))
    whole = wfdb.read(tmp_path, "r", ["I", "II"])
    monkeypatch.setattr(wfdb_signals, "MAX_READ", 1000)
    assert np.array_equal(wfdb.read(tmp_path, "r", ["I", "II"]).mv, whole.mv)


# ---- what wfdb is given, and what it makes of it ----


@pytest.mark.parametrize("name", ["plain", "in/a::b", "star*[1]", "mit leerzeichen", "ünï"])
def test_names_and_record_lines_that_wfdb_refuses(tmp_path, name):
    folder, line = tmp_path / name, "{name}.mat {signals} {rate:g} {frames} 05-May-2020 14:50:55"
    signals = [noise("516", 500, gaps=False)]
    wfdb_files.write(folder, "r", [("516", signals, (1,))], NAMES, line=line)
    assert equal(wfdb.digital(tmp_path, f"{name}/r"), signals)
    with pytest.raises((reference.io.header.HeaderSyntaxError, OSError)):
        theirs(folder)


def damaged(path: Path, change) -> str:
    """Why the record `r`, whose signal file is `path`, is rejected once its bytes are changed; nothing if it is not."""
    path.write_bytes(change(path.read_bytes()))
    try:
        head = wfdb.head(path.parent, "r")
        found = wfdb.read(path.parent, "r", ["I", "II"])
        assert found.mv.shape[1] == head.samples
    except Rejected as error:
        return error.reason
    return ",".join(found.flags)


@pytest.mark.parametrize(
    ("form", "change", "reason"),
    [
        ("516", lambda data: data, ""),
        ("516", lambda data: b"RIFF" + data[4:], "format"),
        ("516", lambda data: data[:200], "truncated"),
        ("516", lambda data: data[:20], "format"),
        ("516", lambda data: b"", "format"),
        ("516", lambda data: data[:5000] + bytes([data[5000] ^ 255]) + data[5001:], "truncated"),
        ("311", lambda data: data[:-1], "truncated"),
        ("310", lambda data: data[:-1], "truncated"),
        ("8", lambda data: data[:-1], "truncated"),
        ("8", lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], "checksum"),
    ],
)
def test_damaged_files_of_the_library_end_in_a_reason(tmp_path, form, change, reason):
    signals = [noise(form, 3000, seed, gaps=False) for seed in range(2)]
    wfdb_files.write(tmp_path, "r", [(form, signals, (1, 1))], NAMES)
    assert damaged(tmp_path / "r_0.dat", change) == reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("r_0.dat 516 200/mV 16 0 3", "r_0.dat 516x2 200/mV 16 0 3", "header"),
        ("r 2 ", "r 1 ", "header"),
        (" 516 ", " 508 ", "format"),
        (" 516 ", " 516+9 ", "truncated"),
        (" 300\n", " 301\n", "truncated"),
        (" 300\n", "\n", ""),
    ],
)
def test_headers_that_do_not_fit_a_flac_file(tmp_path, old, new, reason):
    signals = [noise("516", 300, seed, gaps=False) for seed in range(2)]
    wfdb_files.write(tmp_path, "r", [("516", signals, (1, 1))], NAMES)
    text = (tmp_path / "r.hea").read_text()
    assert old in text
    count = 1 if "x2" in new else -1
    (tmp_path / "r.hea").write_text(text.replace(old, new, count))
    found = damaged(tmp_path / "r_0.dat", lambda data: data)
    assert found == reason


def test_random_bytes_in_flac_files_never_crash(tmp_path):
    dice = random.Random(0)
    signals = [noise("516", 5000, seed, gaps=False) for seed in range(2)]
    wfdb_files.write(tmp_path, "r", [("516", signals, (1, 1))], NAMES)
    good = (tmp_path / "r_0.dat").read_bytes()

    def mutated(_: bytes) -> bytes:
        data = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data) if dice.random() < 0.5 else 60)
            data[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(1, 3))
        return bytes(data)

    reasons = {damaged(tmp_path / "r_0.dat", mutated) for _ in range(60)}
    assert reasons & {"format", "truncated", "header"}


# ---- written by wfdb, and real records ----


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "508", "516", "524"])
@pytest.mark.parametrize("per_frame", [1, 3])
def test_records_written_by_wfdb(tmp_path, form, per_frame):
    signals = [noise(form, 900 * per_frame, seed) for seed in range(3)]
    record = reference.Record(
        record_name="r",
        n_sig=3,
        fs=250,
        sig_len=900,
        fmt=[form] * 3,
        samps_per_frame=[per_frame] * 3,
        sig_name=["I", "II", "V1"],
        units=["mV"] * 3,
        adc_gain=[200.0] * 3,
        baseline=[0] * 3,
        file_name=["r.dat"] * 3,
        e_d_signal=signals,
    )
    record.set_d_features(expanded=True)
    record.set_defaults()
    record.wrsamp(expanded=True, write_dir=str(tmp_path))
    assert equal(wfdb.digital(tmp_path, "r"), signals)
    assert equal(theirs(tmp_path), signals)
    assert wfdb.head(tmp_path, "r").rate == 250 * per_frame
    assert wfdb.read(tmp_path, "r", ["I", "II"]).flags == ()


real_data = os.environ.get("UMBRA_REAL_DATA")


@pytest.mark.skipif(not real_data, reason="UMBRA_REAL_DATA names no folder of WFDB records")
def test_both_readers_decode_real_files_alike():
    """The package is made to read what the fast reader is used for."""
    root = Path(real_data)
    for record in random.Random(2).sample(wfdb.find(root), 20):
        lines = wfdb._read_header(root, record).signals
        path, form, offset = str((root / record).parent / lines[0].file), lines[0].layout.format, lines[0].layout.offset
        width, frames = len(lines), wfdb.head(root, record).samples
        for first, last in ((0, frames), (7, frames - 11)):
            fast = wfdb_fast.samples(path, form, offset, first * width, last * width).reshape(-1, width)
            library = wfdb_library.samples(path, form, offset, [0] * width, [1] * width, first, last)
            assert fast.dtype == library.dtype
            assert np.array_equal(fast, library), record


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "160", "212"])
def test_both_readers_decode_each_fast_format_alike(tmp_path, form):
    signals = [noise(form, 601), noise(form, 1202, 1)]
    wfdb_files.write_signals(tmp_path / "r.dat", form, signals, (1, 2), (0, 0), 5)
    for first, last in ((0, 601), (1, 600), (100, 101)):
        fast = wfdb_fast.samples(str(tmp_path / "r.dat"), form, 5, first * 3, last * 3).reshape(-1, 3)
        library = wfdb_library.samples(str(tmp_path / "r.dat"), form, 5, (0, 0), (1, 2), first, last)
        assert np.array_equal(fast, library)


@pytest.mark.skipif(not real_data, reason="UMBRA_REAL_DATA names no folder of WFDB records")
def test_real_signals_in_other_formats_give_the_same_recording(tmp_path):
    """Real samples, as FLAC (12 leads are two files) and in the coarser formats: both readers and wfdb agree."""
    root = Path(real_data)
    for record in random.Random(1).sample(wfdb.find(root), 5):
        stored, names = wfdb.digital(root, record), wfdb.head(root, record).leads
        for form in BITS:
            top = 1 << BITS[form] - 1
            signals = [np.clip(s, -top, top - 1) for s in stored]
            if form == "8":
                signals = [np.clip(np.diff(s, prepend=s[0]), -127, 127).cumsum() for s in stored]
            files = [(form, signals[a:b], [1] * (b - a)) for a, b in pairwise((0, 6, 12))]
            wfdb_files.write(tmp_path, "r", files, names)
            assert equal(wfdb.digital(tmp_path, "r"), signals), (record, form)
            if form != "61":
                assert equal(theirs(tmp_path), signals), (record, form)
            if form == "16":
                expected = wfdb.read(tmp_path, "r", LEADS)
            if form == "516":
                found = wfdb.read(tmp_path, "r", LEADS)
                assert np.array_equal(found.mv, expected.mv)
                assert (found.rate, found.leads, found.flags) == (expected.rate, expected.leads, expected.flags)
                for a, b in ((found.missing, expected.missing), (found.saturated, expected.saturated)):
                    assert (a is None and b is None) or np.array_equal(a, b)
