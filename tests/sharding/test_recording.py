"""One recording without a build, against the arrays that the test wrote."""

import tarfile

import h5py
import numpy as np
import pytest

from sharding import recording
from tests.support.recordings import LEADS, beats, write_record
from umbra.errors import UserError
from umbra.leads import CANONICAL

ARRAY = {"rate": 100.0, "units": "uV"}


@pytest.fixture
def digital():
    return beats(0)


def test_a_wfdb_record_is_found_by_its_name_its_header_and_its_signals(tmp_path, digital):
    write_record(tmp_path / "a.b", "r.1", digital)
    for name in ("r.1", "r.1.hea", "r.1.dat"):
        mv, names, rate = recording.read(f"{tmp_path}/a.b/{name}", CANONICAL)
        assert (names, rate) == (list(LEADS), 100.0)
        np.testing.assert_allclose(mv, digital.T / 1000, atol=1e-6)


def test_only_what_the_wanted_leads_need_is_read(tmp_path, digital):
    write_record(tmp_path, "a", digital[:, :3], leads=("II", "RESP", "I"))
    mv, names, _ = recording.read(f"{tmp_path}/a", ["aVL", "V1"])
    assert names == ["I", "II"]
    np.testing.assert_allclose(mv, digital[:, [2, 0]].T / 1000, atol=1e-6)
    with pytest.raises(UserError, match=r"none of II, RESP, I is a lead of the encoder"):
        recording.read(f"{tmp_path}/a", ["V1"])


def test_missing_samples_are_nan(tmp_path, digital):
    digital[5:9, 0] = -32768
    write_record(tmp_path, "a", digital)
    mv, _, _ = recording.read(f"{tmp_path}/a", CANONICAL)
    assert np.isnan(mv[:, 5:9]).all()
    assert np.isfinite(mv[:, 9:]).all()


def test_arrays_of_every_kind(tmp_path, digital):
    np.save(tmp_path / "a.npy", digital.T)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["id"] = np.stack([digital.T[::-1], digital.T]), [7, 8]
    np.save(tmp_path / "k.npy", digital.T)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "k.npy", "k.npy")
    for path, source in [
        ("a.npy", {}),
        ("b.h5#1", {}),
        ("b.h5#8", {"ids": "id", "signals": "x"}),
        ("c.tar#k", {"signals": "npy"}),
    ]:
        mv, names, rate = recording.read(f"{tmp_path}/{path}", CANONICAL, array=source, **ARRAY)
        assert (names, rate) == (list(LEADS), 100.0)
        np.testing.assert_allclose(mv, digital.T / 1000, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.npy", "no.npy does not exist"),
        ("no", "is neither a WFDB record"),
        ("broken.npy", r"broken.npy: the header is invalid or ambiguous \("),
        ("broken.xml", "rate= has no effect: .*broken.xml states"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, said, tmp_path):
    for file in ("broken.npy", "broken.xml"):
        (tmp_path / file).write_text("x")
    with pytest.raises(UserError, match=said) as caught:
        recording.read(f"{tmp_path}/{name}", CANONICAL, **ARRAY)
    assert "\n" not in str(caught.value)
