import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import deidentify, plan
from sharding.headers import COLUMNS, Survey, name_hash
from sharding.metadata import Table
from sharding.options import BuildConfig, SplitConfig, validated
from umbra.errors import UserError

KEY = deidentify.PseudonymKey(b"k" * 16, "test")


def row(record, patient="", windows=1, reason=""):
    """One row of `headers.COLUMNS`."""
    whom = ("patient", patient) if patient else ("record", record)
    code = deidentify.pseudonym(KEY, "wfdb", *whom)
    return (record, name_hash(record), reason, "", code, not patient, 50.0, "male", "SR", 0, "a", "I II", windows,
            "", "", "*", 1, 1)  # fmt: skip


def planned(rows, splits=None, table=None, **options):
    """(plan, its rows in order)."""
    config = BuildConfig(input="in", output="out", **options)
    table = table or Table("in/table.csv", None, {}, {}, set())
    columns = [pa.array(c, kind) for c, kind in zip(zip(*rows), COLUMNS.values())]
    frame = pa.table(columns, names=list(COLUMNS))
    splits = None if splits is None else pa.array(splits, pa.int8())
    found, order, decided = plan.make_plan(config, "test", frame, Survey(table, None, splits, {}))
    return found, pa.concat_tables(plan.ordered(found, order, frame, decided, most=3)).unify_dictionaries()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_every_window_once_and_patients_together(patients, most, seed):
    rows = [row(f"p{p}r{r}", str(p), n) for p, records in enumerate(patients) for r, n in enumerate(records)]
    found, frame = planned(rows, samples_per_shard=most, seed=seed)
    records = frame.column("record").to_pylist()
    assert sorted(records) == sorted(r[0] for r in rows)
    wanted = {r[0]: r[12] for r in rows}
    windows = dict(zip(records, frame.column("windows").to_pylist()))
    over = dict(zip(records, frame.column("over").to_pylist()))
    reasons = dict(zip(records, frame.column("reason").to_pylist()))
    for record in records:
        assert windows[record] + over[record] == (0 if reasons[record] else wanted[record])
    for p, n in enumerate(map(sum, patients)):
        assert sum(windows[f"p{p}r{r}"] for r in range(len(patients[p]))) == min(n, most)
    shard_of, start = {}, 0
    for shard in found.shards:
        part = records[start : start + shard.records]
        start += shard.records
        assert sum(windows[r] for r in part) == shard.windows <= most
        order = [r.split("r")[0] for r in part]
        assert [p for i, p in enumerate(order) if i == 0 or order[i - 1] != p] == list(dict.fromkeys(order))
        for patient in set(order):
            assert shard_of.setdefault(patient, shard.name) == shard.name
    assert set(reasons[r] for r in records[:start]) <= {""}
    assert set(reasons[r] for r in records[start:]) <= {"patient_overflow"}


def test_fractions_are_of_patients_and_seeded():
    rows = [row(f"r{i}", str(i // 2)) for i in range(400)]
    first, frame = planned(rows)
    by_split = {s: sum(x.records for x in first.shards if x.split == s) for s in ("train", "val", "test")}
    assert by_split == {"train": 320, "val": 40, "test": 40}
    assert planned(rows)[1].equals(frame)
    assert planned(list(rows), seed=1)[1].column("record") != frame.column("record")


def test_small_sets_leave_no_wanted_split_empty():
    counts = np.bincount(plan.splits_by_fraction(3, [0.8, 0.1, 0.1]), minlength=3)
    assert counts.tolist() == [1, 1, 1]
    assert plan.splits_by_fraction(1, [0.8, 0.1, 0.1]).tolist() == [0]
    assert (plan.splits_by_fraction(100, [0.5, 0.0, 0.2]) == -1).sum() == 30


def test_an_added_patient_moves_no_other_in_the_order():
    rows = [row(f"r{i:03d}", str(i)) for i in range(50)]
    config = {"split": SplitConfig(train=1.0, val=0.0, test=0.0), "samples_per_shard": 1000}
    before = planned(rows[:49], **config)[1].column("record").to_pylist()
    after = planned(rows, **config)[1].column("record").to_pylist()
    assert [r for r in after if r != "r049"] == before


def test_split_column_goes_by_patient():
    rows = [row("a", "1"), row("b", "1"), row("c", "2"), row("d", "3")]
    found, frame = planned(rows, splits=[0, 0, 2, -1])
    assert [(s.split, s.records) for s in found.shards] == [("train", 2), ("test", 1)]
    assert frame.column("reason").to_pylist() == ["", "", "", "no_split"]
    with pytest.raises(UserError, match="1 patients into different splits"):
        planned(rows, splits=[0, 1, 2, 0])


def test_records_without_patient_are_their_own():
    found, frame = planned([row("a"), row("b"), row("c", "1")])
    assert not found.patient_ids
    assert len(set(frame.column("patient").to_pylist())) == 3
    assert planned([row("a", "1")])[0].patient_ids


def test_rejected_and_double_records_come_last():
    found, frame = planned([row("a", reason="short", windows=0), row("b"), row("b")])
    assert found.windows == 1
    assert frame.column("record").to_pylist() == ["b", "a", "b"]
    assert frame.column("reason").to_pylist() == ["", "short", "duplicate_record"]


@pytest.mark.parametrize(
    "chunks",
    [
        [["b", None, "a"], ["c", "a"], []],
        [[3, -1], [1 << 62]],
        [[3, None], [1 << 62]],
        [[0.5, None]],
    ],
)
def test_values_are_those_of_to_pylist(chunks):
    kind = pa.array(chunks[0]).type
    columns = [pa.chunked_array([pa.array(c, kind) for c in chunks])]
    if kind == pa.string():
        columns.append(pa.chunked_array([pa.array(c, kind).dictionary_encode() for c in chunks]))
    for column in columns:
        assert plan.values(column) == column.to_pylist()
        assert list(map(type, plan.values(column))) == list(map(type, column.to_pylist()))


def test_mixed_is_splitmix64():
    """The first outputs of SplitMix64 from state 0 (Steele et al. 2014, as in Java's SplittableRandom)."""
    gamma = np.array([0, 0x9E3779B97F4A7C15], np.uint64).view(np.int64)
    assert [hex(int(v)) for v in plan.mixed(gamma, 0)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate=0.0 must be >= 50 and <= 20000"),
        ({"seconds": -1.0}, "seconds=-1.0 must be > 0"),
        ({"seconds": 0.015}, "whole number of samples"),
        ({"leads": ["I", "X"]}, "must be distinct leads of"),
        ({"leads": ["I", "i"]}, "must be distinct leads of"),
        ({"workers": 0}, "workers=0"),
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
        ({"task": 2, "tasks": 2}, "task=2"),
        ({"resolution_uv": 0.0}, "resolution_uv=0"),
        ({"input": ""}, "input=FOLDER"),
        ({"input": "no/such/folder"}, "does not exist"),
    ],
)
def test_impossible_values(tmp_path, options, message):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=message):
        validated(BuildConfig(**{"input": str(tmp_path), "output": "out", **options}))


def test_leads_in_any_case(tmp_path):
    (tmp_path / "x").touch()
    config = BuildConfig(input=str(tmp_path), output="out", leads=["ii", "AVR"])
    assert validated(config).leads == ["II", "aVR"]


def test_segments_of_another_record_are_no_records_of_their_own():
    """Whatever became of the record that names them, whatever became of them; a record that names itself stays."""
    rows = [row("d/whole"), row("d/part1", reason="path"), row("part2"), row("d/part2"), row("other"), row("loop")]
    files = [
        "*.hea\npart1.hea\npart2.hea\npart2.dat",
        "*.hea",
        "*.hea\n*.dat",
        "*.hea\n*.dat",
        "*.hea",
        "*.hea\nother.hea",
    ]
    at = list(COLUMNS).index("files")
    _, found = planned([(*r[:at], f, *r[at + 1 :]) for r, f in zip(rows, files)])
    reasons = dict(zip(found.column("record").to_pylist(), found.column("reason").to_pylist()))
    segments = {"d/part1", "d/part2", "other"}
    assert reasons == {r[0]: "segment" if r[0] in segments else "" for r in rows}


def test_a_plan_of_another_version_is_named(tmp_path):
    (tmp_path / "private").mkdir()
    pq.write_table(pa.table({"record": ["a"]}), tmp_path / "private" / plan.PLAN_ROWS)
    assert plan.rows_of_shard(tmp_path, 0, ["record"]).column("record").to_pylist() == ["a"]
    with pytest.raises(UserError, match=r"planned by another version \(no column reason\): delete it and build again"):
        plan.rows_of_shard(tmp_path, 0)
