"""Zeros in all leads at an end of a window are counted and named, whatever the source is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from sharding import build as building
from sharding import signal
from sharding.options import BuildConfig
from sharding.progress import status
from sharding.report import report, summary
from tests.support.dicom import dicom
from tests.support.recordings import LEADS, beats, write_record
from umbra.config import load
from umbra.schema import read_manifest

ARRAY = [f"source.array.leads=[{','.join(LEADS)}]", "source.array.rate=100", "source.array.units=uV"]


def recordings() -> np.ndarray:
    """[20, leads, samples] in microvolt: every other one ends in 0.5 s of zeros, one more in 0.2 s."""
    x = np.stack([beats(seed).T for seed in range(20)])
    x[::2, :, -50:] = 0
    x[1, :, -20:] = 0
    return x


def write(folder: Path, form: str) -> list[str]:
    """Writes the recordings -> the words of a build."""
    folder.mkdir()
    x = recordings()
    if form == "wfdb":
        for number, values in enumerate(x):
            write_record(folder, f"r{number:02d}", values.T)
        return []
    if form == "hdf5":
        with h5py.File(folder / "a.h5", "w") as file:
            file["tracings"] = x
    elif form == "table":
        np.save(folder / "a.npy", x)
    else:
        with tarfile.open(folder / "a.tar", "w") as tar:
            for number, values in enumerate(x):
                stream = io.BytesIO()
                np.save(stream, values)
                member = tarfile.TarInfo(f"{number:02d}.npy")
                member.size = len(stream.getvalue())
                tar.addfile(member, io.BytesIO(stream.getvalue()))
    return [f"source.format={form}", *ARRAY]


def build(root: Path, output: Path, *words: str) -> building.Outcome:
    fixed = [f"input={root}", f"output={output}", "source.public=true", "split.train=1", "split.val=0", "split.test=0"]
    return building.build(load(BuildConfig, None, [*fixed, *words]))


@pytest.mark.parametrize("form", ["wfdb", "hdf5", "table", "tars"])
def test_padded_windows_are_counted_and_the_way_out_is_named(tmp_path, form):
    words = write(tmp_path / "in", form)
    outcome = build(tmp_path / "in", tmp_path / "out", *words)
    assert (outcome.kept, outcome.flags["still_ends"]) == (20, 10)
    assert read_manifest(tmp_path / "out").counts["flags"] == {"still_ends": 10}
    way_out = "cut it off in the files" if form == "wfdb" else "source.array.trim=true"
    assert outcome.remarks[0].startswith(f"10 kept windows look padded: {way_out}")
    assert outcome.remarks[0] in status(tmp_path / "out")
    found = summary(tmp_path / "out")["findings"][0]
    assert found.startswith("in 50 % of the windows no lead changes for 0.25 s or more")
    assert f"padding? What to do: {way_out}" in found
    page = report(tmp_path / "out").read_text()
    assert "Nothing looks wrong" not in page
    assert "still_ends" in page
    details = pq.read_table(tmp_path / "out/private/records.parquet").column("detail").to_pylist()
    assert sum(text == "no lead changes in the first 0.01 s and the last 0.5 s" for text in details) == 10
    assert details.count(None) == 10
    if form != "wfdb":
        trimmed = build(tmp_path / "in", tmp_path / "trimmed", *words, "source.array.trim=true", "min_seconds=5")
        assert (trimmed.kept, trimmed.flags["still_ends"], trimmed.flags["padded"]) == (20, 0, 11)
        assert not [line for line in summary(tmp_path / "trimmed")["findings"] if "no lead changes" in line]


def test_padding_with_the_last_value_is_not_trimmed(tmp_path):
    """Each lead holds its last value, which trim=true leaves: the advice is another one then."""
    words = write(tmp_path / "in", "hdf5")
    with h5py.File(tmp_path / "in" / "a.h5", "r+") as file:
        x = file["tracings"][:]
        x[:, :, -50:] = x[:, :, -51:-50]
        file["tracings"][:] = x
    said = []
    for trim in ("false", "true"):
        outcome = build(tmp_path / "in", tmp_path / trim, *words, f"source.array.trim={trim}")
        assert outcome.flags["still_ends"] == 20
        said.append(outcome.remarks[0])
        assert outcome.remarks[0].partition(": ")[2] in summary(tmp_path / trim)["findings"][0]
    assert "if it is not zeros, cut it off in the files" in said[0]
    assert "trim=true" not in said[1]
    assert "cut it off in the files" in said[1]


def test_clinical_files(tmp_path):
    x = np.stack([beats(n).T for n in range(4)])[:, :2, :515]
    x[::2, :, -130:] = 0
    (tmp_path / "in").mkdir()
    for number, values in enumerate(x):
        dicom(tmp_path / "in" / f"{number}.dcm", values.T.tolist())
    words = ["source.format=clinical", "rate=100", "seconds=2", "leads=[I,II]"]
    outcome = build(tmp_path / "in", tmp_path / "out", *words)
    assert (outcome.kept, outcome.flags["still_ends"]) == (4, 2)
    assert "private/records.parquet" in outcome.remarks[0]


@pytest.mark.parametrize("words", [["rate=250"], ["rate=50", "high_pass=0.5"]])
def test_filters_do_not_hide_padding(tmp_path, words):
    given = write(tmp_path / "in", "hdf5")
    assert build(tmp_path / "in", tmp_path / "out", *given, *words).flags["still_ends"] == 10


def test_the_ends_of_a_window():
    x = beats(1).T
    assert signal.still_ends(x, 100.0) == ""
    for start, end, said in ((24, 0, ""), (25, 0, "first 0.25 s"), (0, 25, "last 0.25 s"), (300, 40, "first 3 s and")):
        held = x.copy()
        held[:, :start], held[:, len(held[0]) - end :] = 7, -3
        found = signal.still_ends(held, 100.0)
        assert said in found
        assert bool(found) == bool(said)
    one = x.copy()
    one[:11, -100:] = 0
    assert signal.still_ends(one, 100.0) == ""  # a lead goes on
    assert signal.still_ends(np.zeros((2, 50)), 100.0) == "no lead changes"
    assert signal.still_ends(np.zeros((2, 20)), 100.0) == ""
