"""Equal signals under two patients: found, counted in the report, and nothing else taken for them."""

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from sharding import build as building
from sharding import equal, progress
from sharding.options import BuildConfig
from sharding.report import report, summary
from sharding.sources.protocol import SourceConfig
from tests.support.recordings import beats, write_record


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 3)), max_size=30))
def test_places_are_those_of_a_plain_search(windows):
    signals, patients = (np.array([w[i] for w in windows], np.int64) for i in (0, 1))
    expected = [
        i for i, (s, p) in enumerate(windows) if s != equal.UNKNOWN and any(s == t and p != q for t, q in windows)
    ]
    found = equal.of_two_patients(signals, patients).tolist()
    assert sorted(found) == expected
    assert [s for s in signals[found]] == sorted(signals[found])


def test_a_check_sum_differs_by_one_unit_in_one_place():
    rng = np.random.default_rng(0)
    units = rng.integers(-500, 500, (12, 100)).astype("<i2")
    sums = {equal.checksum(units)}
    for i in range(units.size):
        other = units.copy()
        other.flat[i] += 1
        sums.add(equal.checksum(other))
    assert len(sums) == units.size + 1
    assert all(0 <= value < 1 << 63 for value in sums)


def test_records_under_two_ids_are_counted(tmp_path):
    """Record 0 stands under three ids, 1 under two and twice under one, 2 twice under one alone."""
    who = {"a": (0, "p"), "b": (0, "q"), "c": (0, "r"), "d": (1, "p"), "e": (1, "s"), "f": (1, "s"), "g": (2, "t")}
    who |= {"h": (2, "t"), **{f"x{n}": (n, f"u{n}") for n in range(3, 20)}}
    for name, (signal, patient) in who.items():
        write_record(tmp_path / "in", name, beats(signal), comments=(f"Patient ID: {patient}", "Sex: F"))
    config = BuildConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), source=SourceConfig(public=True))
    config.samples_per_shard = 5
    outcome = building.build(config)
    output = tmp_path / "out"
    assert outcome.remarks[0].startswith("6 records of 4 patients hold a signal that another patient has too")
    assert outcome.remarks[0] in progress.status(output)
    table = pq.read_table(output / "private" / equal.FILE).to_pylist()
    assert {row["record"] for row in table} == set("abcdef")
    samples = {row["key"]: row["patient"] for row in pq.read_table(output / "samples.parquet").to_pylist()}
    assert all(samples[row["key"]] == row["patient"] for row in table)
    assert len({row["signal"] for row in table}) == 2
    assert summary(output)["equal_signals"] == {"records": 6, "windows": 6, "patients": 4}
    assert outcome.remarks[0] in summary(output)["findings"]
    assert "6 records of 4 patients hold a signal" in report(output).read_text()


def test_none_are_told_where_there_are_none(tmp_path):
    for n in range(6):
        write_record(tmp_path / "in", f"r{n}", beats(n), comments=(f"Patient ID: {n}", "Sex: F"))
    config = BuildConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), source=SourceConfig(public=True))
    assert building.build(config).remarks == []
    assert summary(tmp_path / "out")["equal_signals"] == {}
    assert len(pq.read_table(tmp_path / "out" / "private" / equal.FILE)) == 0
