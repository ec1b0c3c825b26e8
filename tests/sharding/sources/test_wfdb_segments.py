"""Records of several segments: read as wfdb reads them, cut into windows where a segment has all leads."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import wfdb as reference

from sharding import build as building
from sharding.options import BuildConfig
from sharding.sources import wfdb
from sharding.sources.protocol import Rejected
from tests.support import wfdb_files
from tests.support.recordings import arrays, beats
from umbra.config import load

LEADS = ("I", "II", "V1")
EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def segment(folder: Path, name: str, seed: int, samples: int, form: str = "16", leads=LEADS, **options) -> np.ndarray:
    """A segment with a signal file of its own; FLAC holds eight leads at most. Returns its signals."""
    top = 1 << wfdb_files.BITS[form] - 1
    x = np.clip(beats(seed, samples, leads=len(leads)).T, 1 - top, top - 1)
    wfdb_files.write(folder, name, [(form, x, (1,) * len(leads))], leads, rate=100, **options)
    return x


def master(folder: Path, name: str, segments: list[tuple[str, int]], signals: int = 3, comments: str = "") -> None:
    lines = [f"{name}/{len(segments)} {signals} 100 {sum(length for _, length in segments)}"]
    lines += [f"{part} {length}" for part, length in segments]
    (folder / f"{name}.hea").write_text("\n".join(lines) + f"\n{comments}")


def layout(folder: Path, name: str, leads) -> None:
    lines = [f"{name} {len(leads)} 100 0", *(f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


def compared_with_wfdb(folder: Path, name: str, leads) -> None:
    record = reference.rdrecord(str(folder / name))
    expected = record.p_signal[:, [record.sig_name.index(lead) for lead in leads]].T
    found = wfdb.read(folder, name, leads)
    gap = np.isnan(expected).any(axis=0)
    assert np.array_equal(gap, np.zeros_like(gap) if found.missing is None else found.missing)
    np.testing.assert_allclose(found.mv[:, ~gap], expected[:, ~gap], atol=1e-6)
    assert wfdb.head(folder, name).samples == len(gap)


def test_a_fixed_layout_joins_its_segments(tmp_path):
    """Of several formats and gains, one of odd length before one of pairs of samples."""
    lengths = (701, 900, 400)
    for i, (length, form, gain) in enumerate(zip(lengths, ("16", "212", "516"), ("200/mV", "1000(5)/mV", "500/mV"))):
        segment(tmp_path, f"s{i}", i, length, form, gain=gain)
    master(tmp_path, "r", [(f"s{i}", length) for i, length in enumerate(lengths)], comments="# Age: 63\n")
    compared_with_wfdb(tmp_path, "r", LEADS)
    head = wfdb.head(tmp_path, "r")
    assert (head.rate, head.leads, head.reader, head.words) == (100, list(LEADS), "wfdb", {"age": "63"})
    assert head.files == ["r.hea", "s0.hea", "s1.hea", "s2.hea", "s0_0.dat", "s1_0.dat", "s2_0.dat"]
    whole = wfdb.read(tmp_path, "r", LEADS)
    assert whole.missing is None
    assert whole.flags == ()
    for span in ((0, 2001), (650, 760), (700, 702), (702, 1601), (1601, 2001), (1999, 2001)):
        assert np.array_equal(wfdb.read(tmp_path, "r", LEADS, span=span).mv, whole.mv[:, slice(*span)])


def test_a_variable_layout_has_gaps_and_segments_without_some_leads(tmp_path):
    layout(tmp_path, "r_layout", ("II", "I", "V1", "PLETH"))
    segment(tmp_path, "r_1", 1, 300, leads=("II", "PLETH", "I"))
    segment(tmp_path, "r_2", 2, 500, "310", leads=("I", "V1", "II"), gain="400/mV")
    segment(tmp_path, "r_3", 3, 200, leads=("PLETH",))
    parts = [("r_layout", 0), ("r_1", 300), ("~", 130), ("r_2", 500), ("~", 70), ("r_3", 200)]
    master(tmp_path, "r", parts, signals=4)
    compared_with_wfdb(tmp_path, "r", ("I", "II"))
    compared_with_wfdb(tmp_path, "r", LEADS)
    head = wfdb.head(tmp_path, "r")
    assert head.leads == ["II", "I", "V1", "PLETH"]
    assert [(s.first, s.last) for s in head.segments] == [(0, 300), (430, 930), (1000, 1200)]
    derived = wfdb.read(tmp_path, "r", ["III"])
    assert derived.leads == ["I", "II"]
    assert derived.flags == ("derived",)
    with pytest.raises(Rejected) as error:
        wfdb.read(tmp_path, "r", ["V6"])
    assert error.value.reason == "missing_lead"


def test_segments_may_be_in_other_units(tmp_path):
    """wfdb reads each of them rightly, but joins microvolts to millivolts."""
    gains = {"a": "200/mV", "b": "0.4/uV", "c": "300000/V"}
    for i, (name, gain) in enumerate(gains.items()):
        segment(tmp_path, name, i, 300, gain=gain)
    alone = [reference.rdrecord(str(tmp_path / name)) for name in gains]
    assert [record.units[0] for record in alone] == ["mV", "uV", "V"]
    expected = np.concatenate([r.p_signal / by for r, by in zip(alone, (1, 1000, 1e-3))]).T
    master(tmp_path, "r", [(name, 300) for name in gains])
    layout(tmp_path, "gaps_layout", LEADS)
    master(tmp_path, "gaps", [("gaps_layout", 0), *((name, 300) for name in gains)])
    for name in ("r", "gaps"):
        np.testing.assert_allclose(wfdb.read(tmp_path, name, LEADS).mv, expected, atol=1e-6)


def test_a_record_of_segments_written_by_wfdb(tmp_path):
    parts = []
    for i, length in enumerate((400, 350)):
        x = beats(i, length, leads=3)
        part = reference.Record(
            record_name=f"s{i}",
            n_sig=3,
            fs=100,
            sig_len=length,
            fmt=["212"] * 3,
            sig_name=list(LEADS),
            units=["mV"] * 3,
            adc_gain=[1000.0] * 3,
            baseline=[0] * 3,
            file_name=[f"s{i}.dat"] * 3,
            d_signal=x,
        )
        part.set_d_features()
        part.set_defaults()
        parts.append(part)
    names, lengths = ["s0", "s1"], [400, 350]
    whole = reference.MultiRecord(parts, "fixed", "r", 3, 100, sig_len=750, seg_name=names, seg_len=lengths)
    whole.wrsamp(write_dir=str(tmp_path))
    compared_with_wfdb(tmp_path, "r", LEADS)


def test_leads_of_segments_share_the_samples_a_frame(tmp_path):
    for name, n in (("s0", 4), ("s1", 2)):
        wfdb_files.write(tmp_path, name, [("16", [beats(1, 200 * n, leads=1)[:, 0]], (n,))], ("I",), rate=100)
    master(tmp_path, "r", [("s0", 200), ("s1", 200)], signals=1)
    head = wfdb.head(tmp_path, "r")
    assert (head.rate, head.samples) == (200, 800)
    first = beats(1, 800, leads=1)[:, 0].reshape(-1, 2).mean(axis=1)
    found = wfdb.read(tmp_path, "r", ["I"]).mv[0] * 200
    np.testing.assert_allclose(found, np.concatenate([first, beats(1, 400, leads=1)[:, 0]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("r.hea", "r/2 3 100 700\ns0 400\ns1 300\n", ""),
        ("r.hea", "r/2 3 100\ns0 400\ns1 300\n", ""),
        ("r.hea", "r/2 3 100 701\ns0 400\ns1 300\n", "header"),
        ("r.hea", "r/3 3 100 700\ns0 400\ns1 300\n", "header"),
        ("r.hea", "r/0 3 100 700\ns0 400\ns1 300\n", "header"),
        ("r.hea", "r/x 3 100 700\ns0 400\ns1 300\n", "header"),
        ("r.hea", "r/2 3 100 700\ns0 400\ns1\n", "header"),
        ("r.hea", "r/2 3 100\ns0 400\ns1 -300\n", "header"),
        ("r.hea", "r/2 3 100\ns0 0\n~ 0\n", "header"),
        ("r.hea", "r/2 3 100\ns0 400\ns1 299\n", "header"),
        ("r.hea", "r/2 3 200 700\ns0 400\ns1 300\n", "multi_segment"),
        ("r.hea", "r/2 3 100\ns0 400\nr 300\n", "multi_segment"),
        ("r.hea", "r/2 3 100\ns0 400\n../s1 300\n", "path"),
        ("r.hea", "r/2 3 100\ns0 400\n/etc/passwd 300\n", "path"),
        ("r.hea", "r/2 3 100\ns0 400\ngone 300\n", ""),
        ("r.hea", "r/1 3 100\n~ 400\n", "missing_lead"),
        ("r.hea", "r/2 3 100\ns0 400\n~ 99999999999999999\n", "too_large"),
        ("s1.hea", "s1 1 100 300\ns1_0.dat 16 200/mmHg 16 0 0 0 0 I\n", ""),
        ("s1.hea", "s1 2 100 300\ns1_0.dat 16 200/mV 16 0 0 0 0 I\ns1_0.dat 16 200 16 0 0 0 0 I\n", "duplicate_lead"),
        ("r.hea", "r/2 3 100\nlost 400\ngone 300\n", "missing_file"),
        ("s1_0.dat", "short", ""),
    ],
)
def test_segments_that_do_not_fit_end_in_a_reason(tmp_path, name, text, reason):
    for part, length in (("s0", 400), ("s1", 300)):
        segment(tmp_path, part, length, length)
    master(tmp_path, "r", [("s0", 400), ("s1", 300)])
    (tmp_path / name).write_text(text)
    try:
        head = wfdb.head(tmp_path, "r")
        assert wfdb.read(tmp_path, "r", ["I", "II"]).mv.shape[1] == head.samples
        found = ""
    except Rejected as error:
        found = error.reason
    assert found == reason


# ---- shards ----


def build(source: Path, output: Path, *words: str) -> building.Outcome:
    all_words = [f"input={source}", f"output={output}", "source.public=true", "rate=100", "seconds=5", *words]
    leads = "" if any(word.startswith("leads=") for word in words) else "leads=[I,II,V1]"
    return building.build(load(BuildConfig, None, [word for word in [*all_words, leads] if word]))


def windows(output: Path) -> list[bytes]:
    """The samples of all windows, in no order."""
    return sorted(window.tobytes() for window in arrays(output))


def rows(output: Path) -> list[tuple]:
    table = pq.read_table(output / "private" / "records.parquet").to_pylist()
    keys = ("record", "window", "reason", "reader")
    return sorted(tuple(row[k] for k in keys) for row in table)


def holter(folder: Path) -> None:
    """Segments of 12, 7 (joined to it), 3 s, gaps between, one without V1, one of 11 s: 3 + 0 + 2 windows of 5 s."""
    folder.mkdir()
    layout(folder, "a_layout", LEADS)
    for i, (length, form) in enumerate([(1200, "212"), (701, "16"), (300, "16"), (1100, "516")]):
        segment(folder, f"a_{i}", i, length, form)
    segment(folder, "a_4", 4, 800, leads=("I", "II"))
    parts = [("a_layout", 0), ("a_0", 1200), ("a_1", 701), ("~", 33), ("a_2", 300), ("~", 7), ("a_4", 800)]
    master(folder, "a", [*parts, ("a_3", 1100), ("~", 50)])


def test_windows_are_cut_where_segments_have_all_leads(tmp_path):
    holter(tmp_path / "in")
    outcome = build(tmp_path / "in", tmp_path / "out")
    assert outcome.kept == 5
    assert outcome.rejected == {"segment": 6}
    kept = [("a", i, None, "wfdb") for i in range(5)]
    parts = [(f"a_{i}", None, "segment", "wfdb" if i == 3 else "fast") for i in range(5)]
    assert rows(tmp_path / "out") == [*kept, *parts, ("a_layout", None, "segment", None)]
    # the same as the stretches as records of their own
    first = np.concatenate([beats(i, n, leads=3) for i, n in ((0, 1200), (1, 701))]).T
    for name, x in (("x", first), ("y", beats(3, 1100, leads=3).T)):
        wfdb_files.write(tmp_path / "own", name, [("16", x, (1, 1, 1))], LEADS, rate=100)
    build(tmp_path / "own", tmp_path / "own_out")
    assert windows(tmp_path / "out") == windows(tmp_path / "own_out")


@pytest.mark.parametrize("words", ["rate=100", "rate=50", "rate=125 min_seconds=2"])
def test_long_stretches_are_read_in_pieces(tmp_path, monkeypatch, words):
    holter(tmp_path / "in")
    whole = build(tmp_path / "in", tmp_path / "whole", *words.split())
    monkeypatch.setattr(wfdb, "MAX_READ", 3 * 1200)
    pieces = build(tmp_path / "in", tmp_path / "pieces", *words.split())
    assert whole.kept == pieces.kept == (6 if "min" in words else 5)
    assert rows(tmp_path / "whole") == rows(tmp_path / "pieces")
    tables = [np.frombuffer(b"".join(windows(tmp_path / n)), "<i2").astype(int) for n in ("whole", "pieces")]
    assert len(tables[0]) == len(tables[1])
    if words == "rate=100":
        assert np.array_equal(*tables)


def test_a_patients_windows_end_within_a_stretch(tmp_path):
    holter(tmp_path / "in")
    outcome = build(tmp_path / "in", tmp_path / "out", "samples_per_shard=4")
    assert (outcome.kept, outcome.rejected["patient_overflow"]) == (4, 1)


def test_a_compressed_record_of_more_values_than_bytes_is_read_in_pieces(tmp_path, monkeypatch):
    x = np.repeat(beats(0, 6000, leads=3), 2, axis=0).T
    wfdb_files.write(tmp_path / "in", "r", [("516", x, (1, 1, 1))], LEADS, rate=100)
    whole = build(tmp_path / "in", tmp_path / "whole")
    monkeypatch.setattr(wfdb, "MAX_READ", (tmp_path / "in" / "r_0.dat").stat().st_size)
    assert x.size > wfdb.MAX_READ
    pieces = build(tmp_path / "in", tmp_path / "pieces")
    assert whole.kept == pieces.kept == 24
    assert windows(tmp_path / "whole") == windows(tmp_path / "pieces")


@pytest.mark.parametrize(
    ("harm", "own"),
    [("no header", None), ("no samples", "missing_file"), ("cut", "truncated"), ("no link", "unreadable")],
)
def test_a_segment_that_cannot_be_read_is_a_gap(tmp_path, harm, own):
    """As if the record's header named a gap there; the windows are the same, but for their flag."""
    for folder, middle in (("in", "m_2"), ("gap", "~")):
        for i in (1, 2, 3) if folder == "in" else (1, 3):
            segment(tmp_path / folder, f"m_{i}", i, 1000)
        master(tmp_path / folder, "m", [("m_1", 1000), (middle, 1000), ("m_3", 1000)])
    file = tmp_path / "in" / ("m_2.hea" if harm == "no header" else "m_2_0.dat")
    held = file.read_bytes()
    file.unlink()
    if harm == "cut":
        file.write_bytes(held[:-1])
    if harm == "no link":
        file.mkdir()
    outcome = build(tmp_path / "in", tmp_path / "out")
    build(tmp_path / "gap", tmp_path / "other")
    assert (outcome.kept, outcome.flags) == (4, {"lost_segment": 4})
    reasons = {record: reason for record, _, reason, _ in rows(tmp_path / "out")}
    assert reasons == {"m": None, "m_1": "segment", **({"m_2": own} if own else {}), "m_3": "segment"}
    assert windows(tmp_path / "out") == windows(tmp_path / "other")
    found, whole = (wfdb.read(tmp_path / folder, "m", LEADS) for folder in ("in", "gap"))
    assert np.array_equal(found.mv, whole.mv)
    assert np.array_equal(found.missing, whole.missing)


def test_segments_below_the_folder_of_their_record(tmp_path):
    """wfdb-python does not read these; beside their record they would be the same."""
    for folder in ("in/p/sub", "beside"):
        for i in (1, 2):
            segment(tmp_path / folder, f"c_{i}", i, 1000)
    master(tmp_path / "in/p", "c", [("sub/c_1", 1000), ("sub/c_2", 1000)])
    master(tmp_path / "beside", "c", [("c_1", 1000), ("c_2", 1000)])
    assert build(tmp_path / "in", tmp_path / "out").kept == build(tmp_path / "beside", tmp_path / "other").kept == 4
    assert windows(tmp_path / "out") == windows(tmp_path / "other")
    reasons = {(record, reason) for record, _, reason, _ in rows(tmp_path / "out")}
    assert reasons == {("p/c", None), ("p/sub/c_1", "segment"), ("p/sub/c_2", "segment")}


def test_a_record_whose_segments_never_have_all_leads(tmp_path):
    segment(tmp_path / "in", "a_1", 1, 900, leads=("I", "II"))
    segment(tmp_path / "in", "a_2", 2, 900, leads=("V1",))
    segment(tmp_path / "in", "b", 3, 1000)
    master(tmp_path / "in", "a", [("a_1", 900), ("a_2", 900)])
    build(tmp_path / "in", tmp_path / "out")
    reasons = {record: reason for record, _, reason, _ in rows(tmp_path / "out")}
    assert reasons == {"a": "missing_lead", "a_1": "segment", "a_2": "segment", "b": None}
