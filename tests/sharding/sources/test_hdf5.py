"""HDF5 records against files that h5py wrote in the sets' documented layouts, millivolts typed by hand."""

import fcntl
import multiprocessing
import os
import random
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from sharding import deidentify
from sharding.metadata import read_table
from sharding.options import REASONS, BuildConfig
from sharding.sources import hdf5
from sharding.sources.protocol import ArrayConfig, SourceConfig
from tests.support import recordings
from umbra.config import load
from umbra.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs/shard"
LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
EXAMS = """\
exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file
1169160,38,True,40.16,False,False,False,False,False,False,523632,False,2.098628,True,exams_part0.hdf5
2873686,73,True,67.05,True,True,False,False,False,False,1724173,False,6.657529,False,exams_part0.hdf5
168405,67,False,79.62,False,False,False,False,True,True,51421,,,False,exams_part1.hdf5
999,41,False,50.0,False,False,False,True,False,False,51421,,,False,exams_part1.hdf5
"""


def options(**keys) -> SourceConfig:
    return SourceConfig(format="hdf5", array=ArrayConfig(**{"rate": 100.0, "leads": ["I", "II"], **keys}))


def reason_of(root, record, config, wanted=("I", "II")):
    return recordings.reason_of(hdf5, root, record, config, wanted, trims=True)


def write_code15(root: Path) -> None:
    """Two parts as on Zenodo: float32 [N, 4096, 12], exam_id, zeros at both ends, a last row of zeros with exam_id 0.

    Lead number k (from 0) of the exam in row r is r + 1 + k / 100 mV, alternately positive and negative.
    """
    (root / "exams.csv").write_text(EXAMS)
    for part, (exams, lengths) in enumerate([((2873686, 1169160, 0), (4000, 2934, 0)), ((168405, 0), (4096, 0))]):
        tracings = np.zeros((len(exams), 4096, 12), np.float32)
        for row, length in enumerate(lengths):
            first = (4096 - length) // 2
            sign = np.where(np.arange(length) % 2, -1, 1)[:, None]
            tracings[row, first : first + length] = sign * (row + 1 + np.arange(12) / 100)
        with h5py.File(root / f"exams_part{part}.hdf5", "w") as file:
            file["tracings"] = tracings
            file["exam_id"] = np.array(exams, np.int64)


def test_code15(tmp_path):
    write_code15(tmp_path)
    config = load(BuildConfig, CONFIGS / "code15.yaml").source
    table = read_table(tmp_path, config.table, 100)
    records = [
        "exams_part0.hdf5#1169160",
        "exams_part0.hdf5#2873686",
        "exams_part1.hdf5#168405",
        "exams_part1.hdf5#999",
    ]
    assert table.records.to_pylist() == records
    assert [[w for w in codes.split(";") if w] for codes in table.words["codes"].to_pylist()] == [
        [],
        ["270492004", "59118001"],
        ["427084000", "164889003"],
        ["426177001"],
    ]
    sexes = [deidentify.sex(word, config.table.sex_values) for word in table.words["sex"].to_pylist()]
    assert sexes == ["male", "male", "female", "female"]
    head = hdf5.head(tmp_path, records[0], config)
    assert (head.rate, head.samples, head.leads, head.files) == (400, 4096, LEADS, ["exams_part0.hdf5"])
    found = hdf5.read(tmp_path, records[0], LEADS, config)
    assert (found.mv.shape, found.mv.dtype, found.rate, found.leads) == ((12, 2934), np.float32, 400, LEADS)
    np.testing.assert_allclose(found.mv[[0, 3, 11], :2], [[2.0, -2.0], [2.03, -2.03], [2.11, -2.11]], rtol=1e-6)
    assert hdf5.read(tmp_path, records[1], ["V6"], config).mv.shape == (1, 4000)
    assert hdf5.read(tmp_path, records[2], ["V1"], config).mv[0, 0] == np.float32(1.06)
    assert reason_of(tmp_path, records[3], config) == "missing_file"


def test_code15s_rows_of_zeros_are_found_and_rejected(tmp_path):
    write_code15(tmp_path)
    config = load(BuildConfig, CONFIGS / "code15.yaml").source
    found = hdf5.find(tmp_path, "", config)
    assert found == [f"exams_part0.hdf5#{i}" for i in (0, 1169160, 2873686)] + [
        f"exams_part1.hdf5#{i}" for i in (0, 168405)
    ]
    assert [reason_of(tmp_path, record, config) for record in found] == ["empty", "", "", "empty", ""]


def test_trim_keeps_zeros_inside_and_single_leads_at_zero(tmp_path):
    x = np.zeros((1, 2, 9))
    x[0, 0, [3, 6]] = 1.0
    x[0, 1, 2] = 2.0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = x
    found = hdf5.read(tmp_path, "a.h5#0", ["I", "II"], options(trim=True))
    assert found.mv.tolist() == [[0, 1, 0, 0, 1], [2, 0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["variable", "fixed", "padded", "resizable"])
def test_ids_of_text(tmp_path, kind):
    ids = ["b#1", "a", "ümlaut", "a0"]
    x = np.arange(4 * 2 * 5, dtype="<i2").reshape(4, 2, 5)
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        file["group/ecg"] = x
        if kind == "variable":
            file["id"] = ids
        elif kind == "resizable":
            file.create_dataset("id", data=ids, maxshape=(None,), dtype=h5py.string_dtype())
        else:
            pad = b" " if kind == "padded" else b""
            file["id"] = np.array([i.encode().ljust(8, pad) if pad else i.encode() for i in ids])
    config = options(signals="group/ecg", ids="id", units="uV")
    assert hdf5.find(tmp_path, "", config) == ["set.hdf5#a", "set.hdf5#a0", "set.hdf5#b#1", "set.hdf5#ümlaut"]
    for row, name in enumerate(ids):
        found = hdf5.read(tmp_path, f"set.hdf5#{name}", ["II", "I"], config)
        np.testing.assert_allclose(found.mv, x[row][[1, 0]] * 0.001, rtol=1e-6)
        assert found.leads == ["II", "I"]
    for absent in ("b", "ab", "a" * 99, "", "1"):
        assert reason_of(tmp_path, f"set.hdf5#{absent}", config) == "missing_file"


def test_a_million_ids_in_any_order(tmp_path):
    ids = np.random.default_rng(0).permutation(1_000_000) * 7 - 11
    with h5py.File(tmp_path / "big.h5", "w") as file:
        data = file.create_dataset("ecg", (1_000_000, 2, 500), "<f4", chunks=(1, 2, 500))
        data[123_456] = 1.5
        file["id"] = ids.reshape(-1, 1)
    config = options(ids="id")
    assert hdf5.read(tmp_path, f"big.h5#{ids[123_456]}", ["I"], config).mv[0, 0] == 1.5
    assert hdf5.read(tmp_path, f"big.h5#{ids[123_457]}", ["I"], config).mv[0, 0] == 0
    assert reason_of(tmp_path, "big.h5#-10", config) == "missing_file"
    assert reason_of(tmp_path, f"big.h5#{'9' * 30}", config) == "missing_file"
    assert reason_of(tmp_path, "big.h5#007", config) == "missing_file"


def test_an_id_that_comes_twice_is_listed_once_and_rejected(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"], file["id"] = np.ones((3, 2, 5)), [4, 7, 4]
    assert hdf5.find(tmp_path, "", options(ids="id")) == ["a.h5#4", "a.h5#7"]
    assert reason_of(tmp_path, "a.h5#4", options(ids="id")) == "duplicate_record"
    assert reason_of(tmp_path, "a.h5#7", options(ids="id")) == ""


def test_rows_where_there_are_no_ids(tmp_path):
    x = np.arange(3 * 5 * 2).reshape(3, 5, 2)
    with h5py.File(tmp_path / "ecg_tracings.HDF5", "w") as file:
        file["tracings"], file["other"] = x, np.ones((4, 4))
    config = options(leads_last=True, units="0.1")
    assert hdf5.find(tmp_path, "", config) == [f"ecg_tracings.HDF5#{row}" for row in range(3)]
    found = hdf5.read(tmp_path, "ecg_tracings.HDF5#2", ["I", "II"], config)
    np.testing.assert_allclose(found.mv, [[2.0, 2.2, 2.4, 2.6, 2.8], [2.1, 2.3, 2.5, 2.7, 2.9]], rtol=1e-6)
    for name in ("3", "-1", "01", "x", "1.0"):
        assert reason_of(tmp_path, f"ecg_tracings.HDF5#{name}", config) == "missing_file"
    assert reason_of(tmp_path, "ecg_tracings.HDF5", config) == "shape"
    assert reason_of(tmp_path, "ecg_tracings.HDF5#1", options()) == "shape"


def test_one_record_a_file_as_in_the_sph_set(tmp_path):
    (tmp_path / "records").mkdir()
    with h5py.File(tmp_path / "records/A00001.h5", "w") as file:
        file["ecg"] = (np.arange(12)[:, None] * np.ones(5000) / 8).astype(np.float16)
    config = options(signals="ecg", leads=LEADS, rate=500.0)
    assert hdf5.find(tmp_path, "", config) == ["records/A00001.h5"]
    head = hdf5.head(tmp_path, "records/A00001.h5", config)
    assert (head.rate, head.samples, head.files) == (500, 5000, ["records/A00001.h5"])
    found = hdf5.read(tmp_path, "records/A00001.h5", ["III", "V6"], config)
    assert found.mv[:, 4999].tolist() == [0.25, 1.375]
    assert reason_of(tmp_path, "records/A00001.h5#0", config) == "missing_file"


@pytest.mark.parametrize("group", ["/", "all/ecgs"])
def test_one_data_set_a_record(tmp_path, group):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{group}/p1"] = [[1.0, np.nan, 3.0], [4.0, 5.0, np.inf]]
        file[f"{group}/p#2"] = np.ones((2, 4), ">i2")
        file[f"{group}/text"] = "no array"
    config = options(signals=group)
    assert hdf5.find(tmp_path, "", config) == ["a.h5#p#2", "a.h5#p1", "a.h5#text"]
    found = hdf5.read(tmp_path, "a.h5#p1", ["I", "II"], config)
    assert found.mv.tolist() == [[1, 0, 3], [4, 5, 0]]
    assert found.missing.tolist() == [False, True, True]
    assert hdf5.read(tmp_path, "a.h5#p#2", ["aVF"], config).flags == ("derived",)
    assert [reason_of(tmp_path, f"a.h5{n}", config) for n in ("#text", "#nobody", "")] == [
        "shape",
        "missing_file",
        "shape",
    ]


def checked(config):
    """The module, after its options have been looked at as a build does."""
    hdf5.check(config)
    return hdf5


def test_options_that_cannot_work_are_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["left"], file["right"] = np.ones((2, 2, 5)), np.ones((2, 2, 5))
    for config, word in [
        (options(), "left, right"),
        (options(signals="middle"), "'left', 'right'"),
        (options(signals="left", rate=0.0), "rate"),
        (options(signals="left", leads=[]), "leads"),
        (options(signals="left", units="mmHg"), "mmHg"),
        (options(signals="left", ids="exam_id"), "exam_id"),
    ]:
        with pytest.raises(UserError, match=word):
            checked(config).find(tmp_path, "", config)
        assert reason_of(tmp_path, "a.h5#0", config) in REASONS
    with pytest.raises(UserError, match="rate"):
        hdf5.check(load(BuildConfig, CONFIGS / "hdf5.yaml").source)


def test_find_leaves_out_folders_and_lists_files_that_cannot_be_read(tmp_path):
    (tmp_path / "in/out").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("in/b.h5", "in/out/c.h5", "elsewhere/d.h5"):
        with h5py.File(tmp_path / path, "w") as file:
            file["ecg"] = np.ones((2, 5))
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a.hdf5").write_bytes(b"no HDF5 file")
    os.mkfifo(tmp_path / "in/pipe.h5")
    root = tmp_path / "in"
    assert hdf5.find(root, "", options()) == ["a.hdf5", "b.h5", "link/d.h5", "out/c.h5", "pipe.h5"]
    assert hdf5.find(root, "out", options()) == ["a.hdf5", "b.h5", "link/d.h5", "pipe.h5"]
    assert [reason_of(root, record, options()) for record in ("a.hdf5", "pipe.h5")] == ["unreadable", "unreadable"]


def test_links_and_values_outside_the_folder_are_refused(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    np.arange(10.0).tofile(tmp_path / "secret.raw")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["ecg"] = np.ones((2, 5))
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(root / "a.h5", "w") as file:
        file["external"] = h5py.ExternalLink("../secret.h5", "ecg")
        file["hangs"] = h5py.ExternalLink("../pipe.h5", "ecg")
        file["soft"] = h5py.SoftLink("/external")
        file.create_dataset("raw", (2, 5), "<f8", external=[(str(tmp_path / "secret.raw"), 0, 80)])
        layout = h5py.VirtualLayout((2, 5), "<f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "ecg", (2, 5))
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "hangs", "soft", "raw", "virtual"):
        assert reason_of(root, "a.h5", options(signals=name)) == "path"
        assert reason_of(root, f"a.h5#{name}", options(signals="/")) == "path"
    for record in ("../secret.h5", str(tmp_path / "secret.h5"), "x/../../secret.h5", "..\\secret.h5", "C:/a.h5"):
        assert reason_of(root, record, options()) == "path"
    assert reason_of(root, "gone.h5", options()) == "missing_file"
    assert reason_of(root, "#17", options()) == "missing_file"


def test_arrays_that_are_no_signals(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["complex"] = np.ones((2, 5), complex)
        file["text"] = [["a", "b"], ["c", "d"]]
        file["pairs"] = np.zeros((2, 5), [("x", "f4"), ("y", "f4")])
        file["flat"] = np.ones(5)
        file["none"] = np.ones((2, 0))
        file.create_dataset("long", (2, 1 << 40), "i1", chunks=(2, 1 << 20))
        file.create_dataset("lump", (1 << 15, 2, 1 << 13), "f8", chunks=(1 << 15, 2, 1 << 13), compression="gzip")
    names = ("complex", "text", "pairs", "flat", "none", "long")
    found = [reason_of(tmp_path, "a.h5", options(signals=name)) for name in names]
    assert found == ["format", "format", "format", "shape", "empty", "too_large"]
    assert reason_of(tmp_path, "a.h5#0", options(signals="lump")) == "too_large"


def test_head_reads_no_signals_and_a_damaged_chunk_is_one_records_matter(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("ecg", data=np.ones((3, 2, 50)), chunks=(1, 2, 50), fletcher32=True)
        place = data.id.get_chunk_info(1).byte_offset
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 8)
    assert hdf5.head(tmp_path, "a.h5#1", options()).samples == 50
    assert [reason_of(tmp_path, f"a.h5#{row}", options()) for row in range(3)] == ["", "unreadable", ""]


def test_a_file_cut_short(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"] = np.ones((3, 2, 500))
    os.truncate(tmp_path / "a.h5", 9000)
    assert reason_of(tmp_path, "a.h5#0", options()) == "truncated"


def test_a_changed_file_is_opened_anew_and_few_stay_open(tmp_path):
    for value, dtype in ((1, "f4"), (2, "f8"), (3, "i2")):
        with h5py.File(tmp_path / "new", "w") as file:
            file["other"] = np.zeros(value)
            file["ecg"] = np.full((1, 2, 5), value, dtype)
        (tmp_path / "a.h5").write_bytes((tmp_path / "new").read_bytes())
        os.utime(tmp_path / "a.h5", ns=(value, value))
        assert hdf5.read(tmp_path, "a.h5#0", ["I"], options()).mv[0, 0] == value
    for number in range(100):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["ecg"] = np.full((2, 5), number)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        assert hdf5.read(tmp_path, f"{number}.h5", ["I"], options()).mv[0, 0] == number
    assert len(os.listdir("/proc/self/fd")) <= before + hdf5.OPEN_FILES


def _read_in_child(root, rows, pipe):
    pipe.send([float(hdf5.read(root, f"a.h5#{row}", ["I"], options()).mv[0, 0]) for row in rows])


def test_locked_files_and_forked_processes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("ecg", data=np.arange(100.0).repeat(100).reshape(100, 2, 50), compression="gzip")
    with open(tmp_path / "a.h5", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            h5py.File(tmp_path / "a.h5", "r", locking=True)
        assert hdf5.read(tmp_path, "a.h5#3", ["I"], options()).mv[0, 0] == 3
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(2)]
    order = [list(range(100)), list(range(99, -1, -1))]
    children = [context.Process(target=_read_in_child, args=(tmp_path, o, e[1])) for o, e in zip(order, ends)]
    for child in children:
        child.start()
    assert [hdf5.read(tmp_path, f"a.h5#{row}", ["I"], options()).mv[0, 0] for row in order[0]] == order[0]
    for child, end, expected in zip(children, ends, order):
        assert end[0].poll(30)
        assert end[0].recv() == expected
        child.join(30)
        assert child.exitcode == 0


def test_a_text_id_that_claims_gigabytes_is_not_believed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"], file["id"] = np.ones((2, 2, 5)), ["one", "two"]
        place = file["id"].id.get_offset()
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(place)
        file.write(b"\xff\xff\xff\xff")
    assert reason_of(tmp_path, "a.h5#two", options(ids="id")) == "format"


def test_mutated_files_end_in_a_reason(tmp_path):
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file.create_dataset(
            "ecg", data=np.ones((3, 2, 50), "f4"), chunks=(1, 2, 50), compression="gzip", fletcher32=True
        )
        file["id"] = [5, 3, 9]
    good = (tmp_path / "good.h5").read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8)).tolist()
    dice, reasons = random.Random(0), Counter()
    for _ in range(150):
        mutant = bytearray(good)
        for _ in range(dice.randint(1, 5)):
            mutant[dice.choice(used)] = dice.choice([0, 1, 255, dice.randrange(256)])
        if dice.random() < 0.2:
            del mutant[dice.randrange(len(mutant)) :]
        (tmp_path / "m.h5").write_bytes(mutant)
        reasons[reason_of(tmp_path, "m.h5#3", options(signals="ecg", ids="id"))] += 1
    assert set(reasons) <= {"", *REASONS}
    assert "" in reasons
    assert len(reasons) > 2


def test_axes_of_length_one_are_no_dimensions(tmp_path):
    x = np.arange(24, dtype="<f4").reshape(2, 1, 4, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"], file["ids"] = x, np.array([7, 5])
    config = options(signals="ecg", ids="ids", leads_last=False, leads=["I", "II", "V1", "V2"])
    assert hdf5.find(tmp_path, "", config) == ["a.h5#5", "a.h5#7"]
    assert hdf5.head(tmp_path, "a.h5#5", config).samples == 3
    assert hdf5.read(tmp_path, "a.h5#5", ["V2"], config).mv.tolist() == x[1, 0, 3:].tolist()


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    """A chunk that is stored by a filter of h5py's registry which no package here has."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((2, 2, 3))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 2, 3))
        plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"ecg", h5py.h5t.IEEE_F32LE, space, plist)
    with pytest.raises(UserError, match=r"filter 32099 \(unnamed\): pip install hdf5plugin"):
        hdf5.find(tmp_path, "", options())
