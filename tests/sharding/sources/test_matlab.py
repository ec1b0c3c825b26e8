"""MATLAB files that scipy wrote, read as records of one's own arrays."""

import random

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from sharding.options import REASONS
from sharding.sources import table
from sharding.sources.protocol import ArrayConfig, SourceConfig
from tests.support import recordings

X = np.array([[1, 2, 3], [40, 50, 60]], "i2")


def options(**keys) -> SourceConfig:
    return SourceConfig(format="table", array=ArrayConfig(**{"rate": 100.0, "leads": ["I", "II"], **keys}))


def reason_of(root, record, config):
    return recordings.reason_of(table, root, record, config)


@pytest.mark.parametrize("form", ["4", "5"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_matrix_is_a_record(tmp_path, form, packed):
    savemat(tmp_path / "a.mat", {"val": X.astype(float)}, format=form, do_compression=packed and form == "5")
    assert table.find(tmp_path, "", options()) == ["a.mat"]
    head = table.head(tmp_path, "a.mat", options())
    assert (head.samples, head.leads, head.files) == (3, ["I", "II"], ["a.mat"])
    assert (
        table.read(tmp_path, "a.mat", ["II", "I"], options(units="uV")).mv.tolist()
        == (X[::-1] / 1000).astype("f4").tolist()
    )


def test_a_field_of_a_struct_is_a_record(tmp_path):
    savemat(tmp_path / "a.mat", {"ECG": {"sex": "Male", "age": 60, "data": X}})
    assert table.read(tmp_path, "a.mat", ["I", "II"], options(signals="ECG.data")).mv.tolist() == X.tolist()


@pytest.mark.parametrize(
    ("content", "signals", "detail"),
    [
        ({"val": X, "other": X}, "", "several arrays"),
        ({"val": X}, "ecg", "no array 'ecg'; the file holds val"),
        ({"ECG": {"data": X}}, "ECG", "NAME.FIELD"),
        ({"ECG": {"data": X}}, "ECG.x", "no field 'x' in 'ECG'; it holds data"),
        ({"val": X}, "val.data", "no field 'data'"),
        ({"val": X * 1j}, "", "not an array of real numbers"),
        ({"val": "text"}, "", "not an array of real numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(tmp_path, content, signals, detail):
    savemat(tmp_path / "a.mat", content)
    config = options(signals=signals)
    with pytest.raises(table.Rejected) as refused:
        table.head(tmp_path, "a.mat", config)
    assert refused.value.reason == "format"
    assert detail in refused.value.detail


def test_version_73_is_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["val"] = X
    data = bytearray((tmp_path / "a.mat").read_bytes())
    data[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(table.Rejected, match=r"source\.format=hdf5"):
        table.head(tmp_path, "a.mat", options())


def test_a_small_file_that_expands_to_gigabytes_is_not_expanded(tmp_path):
    savemat(tmp_path / "a.mat", {"ECG": {"data": np.zeros((2, 1 << 26), "i8")}}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 2 << 20
    assert reason_of(tmp_path, "a.mat", options(signals="ECG.data")) == "too_large"


def test_mutated_files_end_in_a_reason(tmp_path):
    dice, reasons = random.Random(0), set()
    savemat(tmp_path / "a.mat", {"ECG": {"data": X}}, do_compression=True)
    packed = (tmp_path / "a.mat").read_bytes()
    savemat(tmp_path / "a.mat", {"ECG": {"data": X}})
    for data in (packed, (tmp_path / "a.mat").read_bytes()):
        for _ in range(200):
            mutant = bytearray(data)
            for _ in range(dice.randint(1, 4)):
                place = dice.randrange(len(mutant))
                if dice.random() < 0.7:
                    mutant[place] = dice.randrange(256)
                else:
                    del mutant[place : place + dice.randint(1, 20)]
            (tmp_path / "a.mat").write_bytes(mutant)
            reasons.add(reason_of(tmp_path, "a.mat", options(signals="ECG.data")))
    assert {"header"} <= reasons <= {"", *REASONS}
