"""Names, dates, numbers and paths planted in every field of every source: nothing of them is found outside private/."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import openpyxl
import pyarrow.parquet as pq
import pytest

from sharding import build as building
from sharding.options import BuildConfig
from sharding.plan import read_plan
from tests.support.dicom import dicom
from tests.support.recordings import LEADS, beats, write_record
from umbra.config import load

CONFIGS = Path(__file__).parents[2] / "configs" / "shard"
# The last two dates have the partition and the check digit of a SNOMED CT concept.
PLANTED = ("Schmidt", "19510203", "1951-02-03", "03-Feb-1951", "5551234567", "geheim", "pat4711", "Hansaring")
PLANTED += ("19200107", "20241108")
COUNT = 12
NOTE = "Schmidt, geheim, 1951-02-03"


def ecg(n: int) -> np.ndarray:
    """[12, 1000] in microvolt."""
    return np.ascontiguousarray(beats(n).T)


def write_table(path: Path, header: list[str], row: Callable[[int], list]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(row(n) for n in range(COUNT))


def patient(n: int) -> str:
    return "pat4711" if n else "Schmidt"


def wfdb(root: Path) -> list[str]:
    for n in range(COUNT):
        comments = (
            "Age: 63",
            "Sex: Schmidt",
            "Dx: 426783006,Schmidt,5551234567,1951-02-03,19200107,20241108",
            f"Patient ID: {patient(n)}",
            "Name: Schmidt",
            "Rx: geheim",
            "Address: Hansaring 5",
        )
        name = f"Schmidt{n}_19510203"
        line = f"{name} 12 100 1000 03-Feb-1951 12:00:00"
        write_record(root / "Schmidt-19510203", name, beats(n), comments=comments, record_line=line)
    return ["wfdb.yaml"]


def ptbxl(root: Path) -> list[str]:
    for n in range(COUNT):
        write_record(root / "records100/Schmidt", f"{n:05d}_19510203_lr", beats(n))
    columns = [
        "ecg_id",
        "patient_id",
        "age",
        "sex",
        "nurse",
        "site",
        "recording_date",
        "report",
        "scp_codes",
        "strat_fold",
        "filename_lr",
    ]

    def row(n: int) -> list:
        codes = "{'SR': 0.0, 'Schmidt': 100.0, '5551234567': 0.0, '19200107': 0.0, '20241108': 100.0}"
        place = ["Schmidt", "Hansaring", "1951-02-03 10:00:00", NOTE]
        return [n, patient(n), 63, n % 2, *place, codes, 1, f"records100/Schmidt/{n:05d}_19510203_lr"]

    write_table(root / "ptbxl_database.csv", columns, row)
    return ["ptbxl.yaml"]


def mimic(root: Path) -> list[str]:
    for n in range(COUNT):
        comments = ("<subject>: pat4711", "Name: Schmidt", "Date: 1951-02-03")
        write_record(root / f"files/pat4711/s{n}", "5551234567", beats(n), comments=comments)
    columns = ["subject_id", "study_id", "file_name", "ecg_time", "path"]
    where = "files/pat4711/s{}/5551234567"
    write_table(root / "record_list.csv", columns, lambda n: [patient(n), n, "Schmidt", "1951-02-03", where.format(n)])
    return ["mimic.yaml"]


def table(root: Path) -> list[str]:
    for n in range(COUNT):
        np.save(root / f"Schmidt_19510203_{n}.npy", ecg(n))
    columns = ["record", "patient_id", "age", "sex", "codes", "name", "note"]

    def row(n: int) -> list:
        codes = "426783006;Schmidt;5551234567;1951-02-03;19200107;20241108"
        return [f"Schmidt_19510203_{n}.npy", patient(n), "63", "Schmidt", codes, "Schmidt", NOTE]

    write_table(root / "records.csv", columns, row)
    leads = ",".join(LEADS)
    return [
        "table.yaml",
        "source.table.file=[records.csv]",
        "source.array.rate=100",
        f"source.array.leads=[{leads}]",
        "source.array.units=uV",
    ]


def chapman(root: Path) -> list[str]:
    (root / "ECGData").mkdir()
    book = openpyxl.Workbook()
    columns = ["FileName", "Rhythm", "Beat", "PatientAge", "Gender", "PatientName", "Note"]
    book.active.append(columns)
    for n in range(COUNT):
        name = f"MUSE_19510203_{n}_Schmidt"
        lines = [",".join(LEADS), *(",".join(map(str, row)) for row in beats(n, 5000, 500.0).tolist())]
        (root / f"ECGData/{name}.csv").write_text("\n".join(lines) + "\n")
        book.active.append([name, "SR", "Schmidt 5551234567 19200107 20241108", 63, "FEMALE", "Schmidt", NOTE])
    book.save(root / "Diagnostics.xlsx")
    return ["chapman.yaml"]


def code15(root: Path) -> list[str]:
    with h5py.File(root / "exams_part0.hdf5", "w") as file:
        x = np.zeros((COUNT, 4096, 12), np.float32)
        x[:] = np.stack([beats(n, 4096, 400.0) for n in range(COUNT)]) / 1000
        file["tracings"], file["exam_id"] = x, 5551234567 + np.arange(COUNT)
        file["name"] = ["Schmidt"] * COUNT
        file.attrs["Schmidt"] = "1951-02-03"
    columns = ["exam_id", "age", "is_male", "nn_predicted_age", "1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "patient_id"]
    columns += ["death", "timey", "normal_ecg", "trace_file", "note"]

    def row(n: int) -> list:
        no = ["False"] * 6
        return [5551234567 + n, 63, "True", 60, *no, patient(n), "False", 1, "True", "exams_part0.hdf5", NOTE]

    write_table(root / "exams.csv", columns, row)
    return ["code15.yaml"]


def tars(root: Path) -> list[str]:
    with tarfile.open(root / "Schmidt-19510203.tar", "w") as tar:
        for n in range(COUNT):
            buffer = io.BytesIO()
            np.save(buffer, ecg(n))
            codes = ["426783006", "5551234567", "19200107", "20241108"]
            meta = {"patient": patient(n), "age": 63, "sex": "Schmidt", "codes": codes, "n": NOTE}
            for suffix, data in (("npy", buffer.getvalue()), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"Schmidt{n}_19510203.{suffix}")
                info.size, info.uname = len(data), "Schmidt"
                tar.addfile(info, io.BytesIO(data))
    leads = ",".join(LEADS)
    words = ["source.array.rate=100", f"source.array.leads=[{leads}]", "source.array.units=uV"]
    columns = [f"source.table.{kind}=[{kind}]" for kind in ("patient", "age", "sex", "codes")]
    return ["tars.yaml", *words, "source.array.signals=npy", "source.array.meta=json", *columns]


def clinical(root: Path) -> list[str]:
    pydicom = pytest.importorskip("pydicom", reason="pip install umbra[clinical]")
    pytest.importorskip("ecgdatakit", reason="pip install umbra[clinical]")
    for n in range(COUNT):
        path = root / f"Schmidt_19510203_{n}.dcm"
        dicom(
            path, beats(n, 5000, 500.0), labels=[f"2:{c}" for c in (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)], units="uV"
        )
        data = pydicom.dcmread(path)
        data.PatientName, data.PatientID, data.PatientBirthDate = "Schmidt", patient(n), "19510203"
        data.PatientAddress, data.PatientComments, data.StudyDate = "Hansaring 5", NOTE, "19510203"
        data.InstitutionName, data.AccessionNumber = "Hansaring", "5551234567"
        data.save_as(path)
    return ["clinical.yaml"]


@pytest.mark.parametrize("source", [wfdb, ptbxl, mimic, table, chapman, code15, tars, clinical])
def test_nothing_planted_leaves_private(tmp_path, source):
    root, output = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    config, *words = source(root)
    fixed = [f"input={root}", f"output={output}", "source.public=true", "rate=100", *words]
    outcome = building.build(load(BuildConfig, CONFIGS / config, fixed))
    assert outcome.kept == COUNT, outcome.rejected
    private = b"".join(p.read_bytes() for p in (output / "private").rglob("*") if p.is_file())
    assert b"pat4711" not in private or source is mimic  # there it is part of the records' names
    seen = b"".join(p.read_bytes() for p in output.iterdir() if p.is_file())
    samples = pq.read_table(output / "samples.parquet").to_pylist()
    for word in (*PLANTED, str(tmp_path)):
        assert word.encode() not in seen, word
        assert word not in json.dumps(samples), word
    assert len({row["patient"] for row in samples}) == (2 if outcome.patients == 2 else COUNT)
    if source in (wfdb, table, tars):
        assert all(row["codes"] == ["426783006"] and row["age"] == 63 for row in samples)
        assert outcome.codes_left_out >= 3 * COUNT
        assert read_plan(output).unknown_words["codes"]["19200107"] == COUNT  # told to the user, in private/
