"""One's own arrays against pandas and millivolts typed by hand, in files that numpy and openpyxl wrote."""

import os
import pickle
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openpyxl import Workbook

from sharding import deidentify
from sharding.metadata import read_table
from sharding.options import REASONS, BuildConfig
from sharding.sources import table
from sharding.sources.protocol import ArrayConfig, SourceConfig
from sharding.vocabulary import SNOMED
from tests.support import recordings
from tests.support.recordings import beats
from umbra.config import load
from umbra.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs/shard"
LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def options(**keys) -> SourceConfig:
    return SourceConfig(format="table", array=ArrayConfig(**{"rate": 100.0, "leads": ["I", "II"], **keys}))


def reason_of(root, record, config, wanted=("I", "II")):
    return recordings.reason_of(table, root, record, config, wanted)


def millivolts(root, record, config, wanted=("I", "II")):
    return table.read(root, record, wanted, config).mv.tolist()


def text_record(root, text, **keys):
    """(length and leads of the head, millivolts) of a text file."""
    path = root / "text.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    head = table.head(root, "text.csv", options(**keys))
    return (head.samples, head.leads), millivolts(root, "text.csv", options(**keys))


# ---- .npy and .npz ----


def test_axes_of_length_one_are_no_dimensions(tmp_path):
    """EchoNext stores its ECGs as [records, 1, samples, leads]."""
    x = np.arange(12, dtype="<f4").reshape(2, 2, 3)
    np.save(tmp_path / "a.npy", x.transpose(0, 2, 1)[:, None])
    assert table.find(tmp_path, "", options()) == ["a.npy#0", "a.npy#1"]
    assert table.head(tmp_path, "a.npy#1", options(leads_last=True)).samples == 3
    assert millivolts(tmp_path, "a.npy#1", options(leads_last=True)) == x[1].tolist()
    np.savez(tmp_path / "b.npz", ecg=x[:1])
    assert millivolts(tmp_path, "b.npz", options()) == x[0].tolist()
    np.save(tmp_path / "one.npy", x[:1, :1])
    assert millivolts(tmp_path, "one.npy#0", options(leads=["I"]), ["I"]) == x[0, :1].tolist()


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i2", ">i4", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("leads_last", [False, True])
def test_npy(tmp_path, dtype, order, leads_last):
    x = np.array([[1, 2, 3], [40, 50, 60]], dtype)
    np.save(tmp_path / "a.npy", np.asarray(x.T if leads_last else x, order=order))
    config = options(leads_last=leads_last, units="uV")
    head = table.head(tmp_path, "a.npy", config)
    assert (head.rate, head.samples, head.leads, head.files) == (100, 3, ["I", "II"], ["a.npy"])
    found = table.read(tmp_path, "a.npy", ["II", "I"], config)
    np.testing.assert_allclose(found.mv, [[0.04, 0.05, 0.06], [0.001, 0.002, 0.003]], rtol=1e-6)
    assert (found.leads, found.rate, found.mv.dtype) == (["II", "I"], 100, np.float32)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_one_array(tmp_path, order):
    x = np.arange(3 * 2 * 4).reshape(3, 2, 4)
    np.save(tmp_path / "all.npy", np.asarray(x, order=order))
    config = options(units="V")
    assert table.find(tmp_path, "", config) == ["all.npy#0", "all.npy#1", "all.npy#2"]
    assert millivolts(tmp_path, "all.npy#2", config) == [[16000, 17000, 18000, 19000], [20000, 21000, 22000, 23000]]
    assert millivolts(tmp_path, "all#1", config) == [[8000, 9000, 10000, 11000], [12000, 13000, 14000, 15000]]
    assert table.head(tmp_path, "all#1", config).files == ["all.npy"]
    assert reason_of(tmp_path, "all.npy#3", config) == "missing_file"
    assert reason_of(tmp_path, "all.npy", config) == "shape"
    np.save(tmp_path / "one.npy", x[0])
    assert reason_of(tmp_path, "one.npy#0", config) == "shape"


def test_one_row_of_gigabytes(tmp_path):
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.int16, (20_000, 12, 5000))
    big[19_999, 1] = 1234
    big.flush()
    config = options(leads=LEADS, units="uV")
    assert table.head(tmp_path, "big.npy#19999", config).samples == 5000
    assert table.read(tmp_path, "big.npy#19999", ["II"], config).mv[0, 4999] == np.float32(1.234)


def test_missing_values_padding_and_derived_leads(tmp_path):
    np.save(tmp_path / "a.npy", [[0, 0, 1.0, 0, 2.0, 0], [0, np.nan, 3.0, 0, 4.0, 0]])
    found = table.read(tmp_path, "a.npy", ["I", "III"], options(trim=True))
    assert found.mv.tolist() == [[0, 1, 0, 2], [0, 3, 0, 4]]
    assert (found.leads, found.flags, found.missing.tolist()) == (
        ["I", "II"],
        ("derived",),
        [True, False, False, False],
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "one.npz", ecg=np.array([[1.0, 2], [3, 4]]))
    save(tmp_path / "two.npz", ecg=np.array([[1.0, 2], [3, 4]]), rate=500)
    assert table.find(tmp_path, "", options()) == ["one.npz", "two.npz"]
    assert millivolts(tmp_path, "one", options()) == [[1, 2], [3, 4]]
    assert millivolts(tmp_path, "two.npz", options(signals="ecg", leads_last=True)) == [[1, 3], [2, 4]]
    assert reason_of(tmp_path, "two.npz", options()) == "format"
    assert reason_of(tmp_path, "two.npz", options(signals="ekg")) == "format"
    assert reason_of(tmp_path, "one.npz#0", options()) == "shape"


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickles_are_never_loaded(tmp_path):
    trap = np.array([_Trap(tmp_path / "sprung")], object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "b.npz", ecg=trap)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    (tmp_path / "d.npz").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    (tmp_path / "e.csv").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    found = [reason_of(tmp_path, name, options()) for name in ("a", "b", "c", "d", "e")]
    assert found[:3] == ["format", "format", "header"]
    assert "" not in found
    assert not (tmp_path / "sprung").exists()


def npy_bytes(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", bytes(24)), ""),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", bytes(23)), "truncated"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 999999999999)}", bytes(24)), "truncated"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}", bytes(24)), None),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999)}", bytes(24)), None),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", bytes(24)), None),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 0)}"), "empty"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", bytes(24)), "shape"),
        (npy_bytes("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3)}", bytes(48)), "format"),
        (npy_bytes("{'descr': '|b1', 'fortran_order': False, 'shape': (2, 3)}", bytes(6)), "format"),
        (npy_bytes("{'descr': '<U4', 'fortran_order': False, 'shape': (2, 3)}", bytes(96)), "format"),
        (npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}", bytes(24)), "format"),
        (npy_bytes("((" * 50), "header"),
        (npy_bytes("__import__('os').mkdir('x')"), "header"),
        (b"\x93NUMPY\x09\x00", "header"),
        (b"", "header"),
    ],
)
def test_hostile_npy_files(tmp_path, data, reason):
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.npy", data)
    found = reason_of(tmp_path, "a.npy", options())
    assert found in REASONS if reason is None else found == reason
    assert (reason_of(tmp_path, "b.npz", options()) == "") is (reason == "")


def test_a_zip_of_huge_zeros_is_not_unpacked(tmp_path):
    head = npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 300000000)}")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.npy", head + bytes(1 << 24))
    assert reason_of(tmp_path, "b.npz", options()) == "too_large"


# ---- text ----


@pytest.mark.parametrize(
    "text",
    [
        "I,II\n1,2\n3,4\n",
        "1,2\n3,4\n",
        "1,2\n3,4",
        "1,2\r\n3,4\r\n\r\n\n",
        "II,I\n2,1\n4,3\n",
        '"I","II"\n1,2\n3,4\n',
        b"\xef\xbb\xbfI,II\n1,2\n3,4\n",
        b"\xef\xbb\xbf1,2\n3,4\n",
        "lead ii;Lead I\n2;1\n4;3\n",
        "1,0;2,0\n3,0;4,0\n",
        "I;II\n1,0;2,0\n3;4\n",
        "I\tII\n1\t2\n3\t4\n",
        "1.0 2.0\n3.0 4.0\n",
        "  I   II\n 1e0  2e0\n +3   4\n",
        "0,1\n1,2\n3,4\n",
        ",0,1\n0,1,2\n1,3,4\n",
        ",I,II\n0,1,2\n1,3,4\n",
        "time,I,II,note\n00:00:01,1,2,good\n00:00:02,3,4,\n",
        "ch1,ch2\n1,2\n3,4\n",
        " 1.0, 2.0\n 3.0, 4.0\n",
    ],
)
def test_text_dialects(tmp_path, text):
    (samples, leads), mv = text_record(tmp_path, text)
    assert (samples, sorted(lead.lower().removeprefix("lead ") for lead in leads)) == (2, ["i", "ii"])
    assert mv == [[1, 3], [2, 4]]


def test_rows_may_be_leads_where_nothing_else_fits(tmp_path):
    assert text_record(tmp_path, "1,2,3\n4,5,6\n") == ((3, ["I", "II"]), [[1, 2, 3], [4, 5, 6]])
    assert text_record(tmp_path, "1,2\n4,5\n") == ((2, ["I", "II"]), [[1, 4], [2, 5]])
    assert text_record(tmp_path, "1 2 3\n4 5 6\n", units="0.5") == ((3, ["I", "II"]), [[0.5, 1, 1.5], [2, 2.5, 3]])


def test_values_that_are_missing(tmp_path):
    (tmp_path / "a.csv").write_text("I,II\n1,2\n,4\nNaN,6\n7,inf\n9,NA\n")
    found = table.read(tmp_path, "a", ["I", "II"], options())
    assert found.mv.tolist() == [[1, 0, 0, 7, 9], [2, 4, 6, 0, 0]]
    assert found.missing.tolist() == [False, True, True, True, True]


def test_text_equals_pandas(tmp_path):
    x = beats(5, 5000, 500.0) * 1.234567
    pd.DataFrame(x, columns=LEADS).to_csv(tmp_path / "a.csv", index=False)
    np.savetxt(tmp_path / "b.txt", x)
    expected = pd.read_csv(tmp_path / "a.csv").to_numpy().T / 1000
    for record in ("a", "b"):
        found = table.read(tmp_path, record, LEADS, options(leads=LEADS, units="uV", rate=500.0))
        np.testing.assert_allclose(found.mv, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "shape"),
        ("\n\n", "shape"),
        ("I,II\n", "empty"),
        ("I,II\n1,2\n3\n", "format"),
        ("I,II\n1,2\n3,x\n", "format"),
        ("1,2\n3,4,5\n", "format"),
        ("1 2\n3\n", "format"),
        ("1,2\n\n3,4\n", "format"),
        ("1,2,3\n1,2,3\n4,5,6\n", "shape"),
        ("This is a README, not a recording.\n", "empty"),
        ("This is a README, not a recording.\nIt has two lines, both words.\n", "format"),
        ("This is a README, not a recording, and more\nIt has two lines, both words.\n", "shape"),
        ("V1,V2\n1,2\n", "missing_lead"),
        ("I,II,Lead I\n1,2,3\n", "duplicate_lead"),
        ("I,II\n1,2\n" + "\0" * 100, "format"),
        ("1," * (1 << 21) + "1,", "header"),
    ],
)
def test_text_that_is_no_recording(tmp_path, text, reason):
    (tmp_path / "a.txt").write_text(text)
    assert reason_of(tmp_path, "a.txt", options()) == reason


def test_text_without_lead_names_needs_the_option(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n")
    (tmp_path / "b.csv").write_text("I,II\n1,2\n")
    assert [reason_of(tmp_path, name, options(leads=[])) for name in "ab"] == ["missing_lead", ""]
    with open(tmp_path / "c.csv", "wb") as file:
        file.truncate(table.MAX_TEXT + 1)
    assert reason_of(tmp_path, "c.csv", options()) == "too_large"


# ---- folders and names ----


def checked(config):
    """The module, after its options have been looked at as a build does."""
    table.check(config)
    return table


def test_find(tmp_path):
    for name in ("in/b/1.npy", "in/a.csv", "in/out/x.npy", "in/records.csv", "elsewhere/e.csv", "in/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1,2\n")
    np.savez(tmp_path / "in/c.NPZ.npz", np.ones((2, 5)))
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    config = options()
    config.table.file = ["records.csv"]
    assert table.find(tmp_path / "in", "", config) == ["a.csv", "b/1.npy", "c.NPZ.npz", "link/e.csv", "out/x.npy"]
    assert table.find(tmp_path / "in", "out", config) == ["a.csv", "b/1.npy", "c.NPZ.npz", "link/e.csv"]
    for keys, word in [({"rate": 0.0}, "rate"), ({"leads": []}, "leads"), ({"units": "bananas"}, "bananas")]:
        with pytest.raises(UserError, match=word):
            checked(options(**keys)).find(tmp_path / "in", "", options(**keys))
        assert reason_of(tmp_path / "in", "a.csv", options(**keys)) in REASONS


@pytest.mark.parametrize(
    "record", ["/etc/a.npy", "../a.npy", "b/../../a#0", "..\\a.csv", "C:/a.csv", "~/a.csv", "", "../a"]
)
def test_names_that_leave_the_folder(tmp_path, record):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "a.npy", np.ones((2, 5)))
    assert reason_of(tmp_path / "in", record, options()) == "path"


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    names = ("gone.npy", "gone", "gone#3", "folder.npy", "pipe.csv", "pipe.csv/x.csv")
    found = [reason_of(tmp_path, name, options()) for name in names]
    assert found == ["missing_file", "missing_file", "missing_file", "unreadable", "unreadable", "missing_file"]


def test_mutated_files_end_in_a_reason(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 9)))
    np.savez_compressed(tmp_path / "b.npz", np.ones((2, 9)))
    (tmp_path / "c.csv").write_text("I,II\n" + "1.5,2.5\n" * 9)
    dice, reasons = random.Random(0), Counter()
    for name in ("a.npy", "b.npz", "c.csv"):
        good = (tmp_path / name).read_bytes()
        for _ in range(150):
            mutant = bytearray(good)
            for _ in range(dice.randint(1, 5)):
                mutant[dice.randrange(len(mutant))] = dice.choice([0, 10, 44, 255, dice.randrange(256)])
            if dice.random() < 0.2:
                del mutant[dice.randrange(len(mutant)) :]
            (tmp_path / name).write_bytes(mutant)
            reasons[reason_of(tmp_path, name, options())] += 1
    assert set(reasons) <= {"", *REASONS}
    assert "" in reasons
    assert len(reasons) > 3


# ---- Chapman-Shaoxing ----


def write_chapman(root: Path) -> None:
    """As on figshare: ECGData with a line of names, ECGDataDenoised without, microvolt, 5000 lines of 12 columns."""
    sheet = Workbook()
    sheet.active.append(["FileName", "Rhythm", "Beat", "PatientAge", "Gender", "VentricularRate"])
    sheet.active.append(["MUSE_20180113_171327_27000", "AFIB", "RBBB TWC", 85, "MALE", 117])
    sheet.active.append(["MUSE_20180112_073319_29000", "SB", "TWC", 59, "FEMALE", 52])
    sheet.active.append(["MUSE_20180111_165520_97000", "SA", "NONE", 20, "FEMALE", 67])
    sheet.active.append(["MUSE_gone", "AF", "STE IDC", 66, "MALE", 53])
    sheet.save(root / "Diagnostics.xlsx")
    for folder in ("ECGData", "ECGDataDenoised"):
        (root / folder).mkdir()
    line = ",".join(str(-100.5 + 10 * lead) for lead in range(12))
    for name in ("MUSE_20180113_171327_27000", "MUSE_20180112_073319_29000", "MUSE_20180111_165520_97000"):
        (root / f"ECGData/{name}.csv").write_text(",".join(LEADS) + "\n" + f"{line}\n" * 5000)
        (root / f"ECGDataDenoised/{name}.csv").write_text(f"{line}\n" * 4999 + "NaN" + line[line.index(",") :] + "\n")


@pytest.mark.parametrize("folder", ["ECGData", "ECGDataDenoised"])
def test_chapman(tmp_path, folder):
    write_chapman(tmp_path)
    pattern = f"source.table.record_pattern={folder}/{{FileName}}.csv"
    config = load(BuildConfig, CONFIGS / "chapman.yaml", [] if folder == "ECGData" else [pattern]).source
    rows = read_table(tmp_path, config.table, 100)
    records = rows.records.to_pylist()
    assert records[0] == f"{folder}/MUSE_20180113_171327_27000.csv"
    assert rows.words["age"].to_pylist() == ["85", "59", "20", "66"]
    sexes = [deidentify.sex(word, config.table.sex_values) for word in rows.words["sex"].to_pylist()]
    assert sexes == ["male", "female", "female", "male"]
    head = table.head(tmp_path, records[0], config)
    assert (head.rate, head.samples, head.leads, head.files) == (500, 5000, LEADS, [records[0]])
    found = table.read(tmp_path, records[1], LEADS, config)
    np.testing.assert_allclose(found.mv[[0, 1, 11], 0], [-0.1005, -0.0905, 0.0095], rtol=1e-6)
    assert (found.missing is None) == (folder == "ECGData")
    assert reason_of(tmp_path, records[3], config) == "missing_file"


def test_chapmans_codes(tmp_path):
    write_chapman(tmp_path)
    config = load(BuildConfig, CONFIGS / "chapman.yaml").source
    assert set(config.table.code_values.values()) <= SNOMED
    words = read_table(tmp_path, config.table, 100).words["codes"].to_pylist()
    assert [deidentify.codes(text)[0] for text in words] == [
        ("164889003", "59118001", "164934002"),
        ("426177001", "164934002"),
        ("427393009",),
        ("164890007",),
    ]


@pytest.mark.parametrize("name", ["chapman_physionet", "mimic", "table"])
def test_the_other_configs_load(name):
    config = load(BuildConfig, CONFIGS / f"{name}.yaml").source
    assert (config.format, config.public) == (("table", False) if name == "table" else ("wfdb", True))


def test_mimics_record_list(tmp_path):
    (tmp_path / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n"
        "10000032,40689238,40689238,2180-07-23 08:44:00,files/p1000/p10000032/s40689238/40689238\n"
    )
    rows = read_table(tmp_path, load(BuildConfig, CONFIGS / "mimic.yaml").source.table, 100)
    assert rows.records.to_pylist() == ["files/p1000/p10000032/s40689238/40689238"]
    assert {kind: column.to_pylist() for kind, column in rows.words.items()} == {"patient": ["10000032"]}


# ---- titles of columns ----


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        ("I [uV],II [uV]", [[1.0, 3.0], [2.0, 4.0]]),
        ("I (mV),II (mV)", [[1000.0, 3000.0], [2000.0, 4000.0]]),
        ("lead_i_[uV],lead_ii_[uV]", [[1.0, 3.0], [2.0, 4.0]]),
        ("# I,II", [[1000.0, 3000.0], [2000.0, 4000.0]]),
    ],
)
def test_titles_may_state_the_unit(tmp_path, titles, expected):
    (tmp_path / "a.csv").write_text(f"{titles}\n1000,2000\n3000,4000\n")
    assert millivolts(tmp_path, "a.csv", options(leads=[])) == expected


def test_numpys_savetxt_with_a_header(tmp_path):
    for delimiter in (",", " ", ";", "\t"):
        np.savetxt(tmp_path / "a.txt", [[1, 2], [3, 4]], header=delimiter.join(["I", "II"]), delimiter=delimiter)
        assert millivolts(tmp_path, "a.txt", options(leads=[])) == [[1, 3], [2, 4]]


def test_columns_in_different_units_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("I [uV],II [mV]\n1,2\n")
    assert reason_of(tmp_path, "a.csv", options(leads=[])) == "units"
    (tmp_path / "b.csv").write_text("I [raw],II [raw]\n1,2\n")
    assert reason_of(tmp_path, "b.csv", options(leads=[])) == "missing_lead"
