"""The reader against wfdb-python, against values typed by hand, and against hostile input."""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb as reference

from sharding.options import REASONS
from sharding.sources import wfdb, wfdb_fast, wfdb_header
from sharding.sources.protocol import Rejected
from tests.support.recordings import LEADS, beats, write_record


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212"])
@pytest.mark.parametrize("samples", [1000, 1001])
def test_digital_samples_equal_wfdbs(tmp_path, form, samples):
    bits = {"16": 16, "24": 24, "32": 32, "80": 8, "212": 12}[form]
    rng = np.random.default_rng(int(form))
    top = 1 << bits - 1
    x = rng.integers(-top + 1, top, (samples, 3))
    x[0], x[1] = top - 1, -top + 1
    reference.wrsamp(
        "rec",
        500,
        ["mV"] * 3,
        ["I", "II", "V1"],
        d_signal=x,
        fmt=[form] * 3,
        adc_gain=[200.0] * 3,
        baseline=[0] * 3,
        write_dir=str(tmp_path),
    )
    record = reference.rdrecord(str(tmp_path / "rec"), physical=False)
    found = wfdb.digital(tmp_path, "rec")
    assert (found == record.d_signal.T).all()
    assert (found == x.T).all()
    head = wfdb.head(tmp_path, "rec")
    assert (head.rate, head.samples, head.leads) == (500, samples, ["I", "II", "V1"])
    whole, part = (wfdb.read(tmp_path, "rec", ["I", "II"], span=span) for span in (None, (2, samples - 1)))
    assert whole.flags == part.flags == ()
    assert (part.mv == whole.mv[:, 2 : samples - 1]).all()


@pytest.mark.parametrize(
    ("form", "data", "values"),
    [
        ("212", bytes([0x01, 0x80, 0xFF]), [1, -1793]),
        ("212", bytes([0x01, 0x80, 0xFF, 0xFE, 0x0F]), [1, -1793, -2]),
        ("61", bytes([0x01, 0x02, 0xFF, 0xFE]), [258, -2]),
        ("160", bytes([0x00, 0x80, 0x01, 0x00]), [0, -32767]),
        ("80", bytes([0, 128, 255]), [-128, 0, 127]),
        ("24", bytes([1, 0, 0, 0xFE, 0xFF, 0xFF]), [1, -2]),
    ],
)
def test_unpack_bytes_typed_by_hand(form, data, values):
    assert wfdb_fast.unpack(data, form, len(values)).tolist() == values


def test_millivolt_equals_wfdbs_physical(tmp_path):
    x = beats(3)
    x[5, 4] = -32768
    write_record(tmp_path, "r", x, gain="488.3(-17)/mV")
    expected = reference.rdrecord(str(tmp_path / "r")).p_signal.T
    found = wfdb.read(tmp_path, "r", LEADS)
    assert np.isnan(expected[4, 5])
    assert np.flatnonzero(found.missing).tolist() == [5]
    np.testing.assert_allclose(found.mv, np.nan_to_num(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("word", "millivolt"),
    [
        ("1000.0(0)/mV", 1.0),
        ("1000/mv", 1.0),
        ("1000", 1.0),
        ("1e3/mV", 1.0),
        ("0/mV", 5.0),
        ("(0)/mV", 5.0),
        ("/mV", 5.0),
        ("(500)/mV", 2.5),
        ("1000(500)/mV", 0.5),
        ("1/uV", 1.0),
        ("1000000/V", 1.0),
    ],
)
def test_gain_dialects(tmp_path, word, millivolt):
    x = np.full((10, 1), 1000, "<i2")
    write_record(tmp_path, "r", x, leads=("I",), gain=word)
    np.testing.assert_allclose(wfdb.read(tmp_path, "r", ["I"]).mv, millivolt, rtol=1e-6)


def test_adc_zero_is_the_baseline_where_none_is_given():
    line = "r.dat 16 100/mV 12 1024 0 0 0 V1"
    assert wfdb_header.parse_header(f"r 1 100 10\n{line}").signals[0].layout.baseline == 1024
    with_baseline = line.replace("100/mV", "100(7)/mV")
    assert wfdb_header.parse_header(f"r 1 100 10\n{with_baseline}").signals[0].layout.baseline == 7


@pytest.mark.parametrize(
    ("line", "rate", "samples"),
    [
        ("E00271.mat 1 500 5000 05-May-2020 14:50:55", 500, 5000),
        ("r 1 500 5000 12:33:59 12/05/2020", 500, 5000),
        ("r 1 360/360(0) 650000", 360, 650000),
        ("r 1 257.5 10", 257.5, 10),
        ("r 1", 250, None),
        ("r 1 500", 500, None),
        ("r 1 500 0", 500, 0),
        ("r 1 500 05-May-2020 14:50:55", 500, None),
    ],
)
def test_record_lines(line, rate, samples):
    header = wfdb_header.parse_header(f"{line}\r\nr.dat 16 1000/mV 16 0 0 0 0 I\r\n")
    assert (header.rate, header.frames) == (rate, samples)
    assert header.signals[0].name == "I"


def test_mat_files_and_length_from_the_file(tmp_path):
    x = beats(1, samples=600, leads=2)
    head = "A1.mat 2 500 05-May-2020 14:50:55\n"
    head += "A1.mat 16+24 1000/mV 16 0 0 0 0 I\nA1.mat 16+24 1000/mV 16 0 0 0 0 II\n# Age: 63\n#Dx: 426783006\n"
    (tmp_path / "A1.hea").write_text(head)
    (tmp_path / "A1.mat").write_bytes(b"x" * 24 + x.tobytes())
    assert (wfdb.digital(tmp_path, "A1") == x.T).all()
    found = wfdb.head(tmp_path, "A1")
    assert (found.samples, found.files) == (600, ["A1.hea", "A1.mat"])
    assert found.words == {"age": "63", "codes": "426783006"}


def test_leads_in_several_files_and_other_signals(tmp_path):
    x = beats(1, leads=3)
    (tmp_path / "r.hea").write_text(
        "r 3 100 1000\na.dat 16 1000/mV 16 0 0 0 0 PLETH\n"
        "a.dat 16 1000/mV 16 0 0 0 0 II\nb.dat 16 1000/mV 16 0 0 0 0 I\n"
    )
    (tmp_path / "a.dat").write_bytes(np.ascontiguousarray(x[:, :2]).tobytes())
    (tmp_path / "b.dat").write_bytes(np.ascontiguousarray(x[:, 2]).tobytes())
    found = wfdb.read(tmp_path, "r", ["I", "II", "aVR"])
    assert found.leads == ["I", "II"]
    assert "derived" in found.flags
    np.testing.assert_allclose(found.mv, x.T[[2, 1]] / 1000, atol=1e-6)
    assert (wfdb.digital(tmp_path, "r") == x.T).all()


def test_check_sum_and_limits_are_noticed(tmp_path):
    x = beats(2)
    write_record(tmp_path, "good", x)
    assert wfdb.read(tmp_path, "good", LEADS).flags == ()
    data = bytearray((tmp_path / "good.dat").read_bytes())
    data[100] ^= 1
    (tmp_path / "good.dat").write_bytes(data)
    assert wfdb.read(tmp_path, "good", LEADS).flags == ("checksum",)
    x[7:10, 0], x[20, 3] = 32767, -32767
    write_record(tmp_path, "limits", x)
    found = wfdb.read(tmp_path, "limits", LEADS)
    assert np.flatnonzero(found.saturated).tolist() == [7, 8, 9]
    assert np.flatnonzero(found.at_limit).tolist() == [7, 8, 9, 20]
    assert found.missing is None


def reason_of(root, record, wanted):
    """Why a record is rejected; nothing if it is not. Any other exception fails the test."""
    try:
        head = wfdb.head(root, record)
        assert wfdb.read(root, record, wanted).mv.shape[1] == head.samples
    except Rejected as error:
        return error.reason
    return ""


GOOD = "r 2 100 1000\nr.dat 16 1000/mV 16 0 0 0 0 I\nr.dat 16 1000/mV 16 0 0 0 0 II\n"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("r 2 100 1000", "r 2 100 1001", "truncated"),
        ("r 2 100 1000", "r 2 100 999999999999", "truncated"),
        ("r 2 100 1000", "r 999999999999 100 1000", "header"),
        ("r 2 100 1000", "r 3 100 1000", "header"),
        ("r 2 100 1000", "r -2 100 1000", "header"),
        ("r 2 100 1000", "r 0 100 1000", "header"),
        ("r 2 100 1000", "r 2 nan 1000", "header"),
        ("r 2 100 1000", "r 2 1e300 1000", "rate"),
        ("r 2 100 1000", "r 2 -100 1000", "rate"),
        ("r 2 100 1000", "r 2 100 -1000", "header"),
        ("r 2 100 1000", "r/3 2 100 1000", "header"),
        ("r 2 100 1000", "", "header"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16 -1000/mV 16 0 0 0 0 I\n", "gain"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16 1e-300/mV 16 0 0 0 0 I\n", "gain"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16 1000/mmHg 16 0 0 0 0 I\n", "units"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16 1000/mV 16 x 0 0 0 I\n", "header"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16x2 1000/mV 16 0 0 0 0 I\n", "truncated"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 16x0 1000/mV 16 0 0 0 0 I\n", "frames"),
        ("r.dat 16 1000/mV 16 0 0 0 0 I\n", "r.dat 212 1000/mV 16 0 0 0 0 I\n", "header"),
        ("r.dat 16", "r.dat 508", "format"),
        ("r.dat 16", "r.dat 16+999999", "truncated"),
        ("r.dat 16", "r.dat flac", "header"),
        ("r.dat 16", "../r.dat 16", "path"),
        ("r.dat 16", "/etc/passwd 16", "path"),
        ("r.dat 16", ".. 16", "path"),
        ("r.dat 16", "~ 16", "path"),
        ("r.dat 16", "gone.dat 16", "missing_file"),
        ("r.dat 16", "folder 16", "unreadable"),
        ("r.dat 16", "pipe 16", "unreadable"),
        (" 0 II\n", " 0 I\n", "duplicate_lead"),
        (" 0 II\n", " 0 V2\n", "missing_lead"),
    ],
)
def test_hostile_headers_end_in_a_reason(tmp_path, old, new, reason):
    assert old in GOOD
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "r.dat").write_bytes(beats(1, leads=2).tobytes())
    (tmp_path / "r.hea").write_text(GOOD.replace(old, new))
    assert reason_of(tmp_path, "r", ("I", "II")) == reason


@pytest.mark.parametrize("record", ["/etc/passwd", "../r", "a/../../r", "", "..\\r", "C:/r"])
def test_names_that_leave_the_folder(tmp_path, record):
    with pytest.raises(Rejected) as error:
        wfdb.head(tmp_path / "in", record)
    assert error.value.reason == "path"


def test_mutated_headers_never_crash(tmp_path):
    dice = random.Random(0)
    write_record(tmp_path, "good", beats(1), comments=("Age: 63", "Dx: 426783006"))
    text = (tmp_path / "good.hea").read_bytes()
    reasons = Counter()
    for _ in range(400):
        mutant = bytearray(text)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(mutant) or 1)
            kind = dice.randrange(4)
            if kind == 0:
                mutant[place : place + 1] = bytes([dice.randrange(256)])
            elif kind == 1:
                del mutant[place : place + dice.randint(1, 30)]
            elif kind == 2:
                mutant[place:place] = dice.choice([b"9" * 12, b"-", b"../", b"\0", b"1e9", b"/", b"\n", b" ", b"nan"])
            else:
                mutant = mutant[: place + 1]
        (tmp_path / "m.hea").write_bytes(bytes(mutant))
        reasons[reason_of(tmp_path, "m", LEADS)] += 1
    assert len(reasons) > 1
    assert "" in reasons
    assert set(reasons) <= {"", *REASONS}


def test_find_is_sorted_and_leaves_the_output_out(tmp_path):
    for name in ("b/2", "b/1", "a", "out/x"):
        path = tmp_path / f"{name}.hea"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert wfdb.find(tmp_path) == ["a", "b/1", "b/2", "out/x"]
    assert wfdb.find(tmp_path, "out") == ["a", "b/1", "b/2"]


real_data = os.environ.get("UMBRA_REAL_DATA")


@pytest.mark.skipif(not real_data, reason="UMBRA_REAL_DATA names no folder of WFDB records")
def test_real_records_equal_wfdbs():
    root = Path(real_data)
    records = wfdb.find(root)
    compared = 0
    for record in random.Random(0).sample(records, min(len(records), int(os.environ.get("UMBRA_REAL_SAMPLE", 300)))):
        try:
            expected = reference.rdrecord(str(root / record), physical=False).d_signal.T
        except reference.io.header.HeaderSyntaxError:
            continue
        assert (wfdb.digital(root, record) == expected).all(), record
        compared += 1
    print(f"{compared} records compared")


@pytest.mark.parametrize(
    ("comments", "words"),
    [
        (["<age>: 65  <sex>: F", "<diagnoses> Coronary artery disease"], {"age": "65", "sex": "F"}),  # INCART
        (["<age>: 51", "<sex>: M", "<diagnoses>:", "Rhythm: Sinus"], {"age": "51", "sex": "M"}),  # LUDB
        (["age: 81", "sex: female", "Diagnose:"], {"age": "81", "sex": "female"}),  # PTB
        (["Age: 74", "Sex: Male", "Dx: 59118001", "Rx: Unknown"], {"age": "74", "sex": "Male", "codes": "59118001"}),
        (["62 M 1085 1629 x1"], {}),  # MIT-BIH
    ],
)
def test_words_of_the_comments_of_public_sets(comments, words):
    assert wfdb_header.words_of(comments) == words
