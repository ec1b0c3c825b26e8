"""Whole builds of small folders, against arrays that the test wrote itself."""

import itertools
import json
import os
import re
import shutil
import signal as signals
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sharding import build as building
from sharding import deidentify, plan
from sharding.options import BuildConfig, validated
from sharding.verify import verify
from tests.support.recordings import LEADS, beats, write_folder, write_record
from umbra.config import load
from umbra.errors import UserError
from umbra.schema import read_manifest

CONFIGS = Path(__file__).parents[2] / "configs" / "shard"


def build(source: Path, output: Path, *words: str, config: str = "wfdb") -> building.Outcome:
    fixed = [f"input={source}", f"output={output}", "source.public=true"]
    return building.build(load(BuildConfig, CONFIGS / f"{config}.yaml", [*fixed, *words]))


def public_bytes(output: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in output.iterdir() if p.is_file()}


def rejected(output: Path) -> dict[str, str]:
    table = pq.read_table(output / "private" / "records.parquet").to_pylist()
    return {row["record"]: row["reason"] for row in table if row["status"] == "rejected"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("input")
    return root, write_folder(root, 30, 2)


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "shards"
    build(folder[0], path, "samples_per_shard=12", "seed=3")
    return path


def test_samples_are_the_records(folder, output):
    manifest = read_manifest(output)
    samples = pq.read_table(output / "samples.parquet").to_pylist()
    records = pq.read_table(output / "private" / "records.parquet").to_pylist()
    name_of = {row["key"]: row["record"] for row in records}
    assert len(samples) == len(records) == 60
    assert [row["shard"] for row in samples] == sorted(row["shard"] for row in samples)
    geometry = manifest.geometry
    for row in samples:
        data = (output / manifest.shards[row["shard"]].name).read_bytes()
        start = geometry.first + row["index"] * geometry.stride
        found = np.frombuffer(data, "<i2", geometry.array_bytes // 2, start).reshape(12, 1000)
        name = name_of[row["key"]]
        assert (found == folder[1][name].T).all()
        patient = int(name[1:5])
        assert row["age"] == 20 + patient % 60
        assert row["sex"] == ("female", "male")[patient % 2]
        assert row["codes"] == [("426783006", "164889003")[patient % 2]]
        assert row["source"] == "wfdb"


def test_manifest(folder, output):
    manifest = read_manifest(output)
    assert [s.split for s in manifest.shards] == sorted(
        (s.split for s in manifest.shards), key=("train", "val", "test").index
    )
    assert all(s.samples <= 12 for s in manifest.shards)
    assert (manifest.patient_ids, manifest.key_id, manifest.leads) == (True, "public", list(LEADS))
    assert manifest.counts["sex"] == {
        "female": {"samples": 30, "patients": 15},
        "male": {"samples": 30, "patients": 15},
    }
    rows = pq.read_table(output / "private" / "records.parquet").to_pylist()
    train = np.stack([folder[1][r["record"]] for r in rows if r["split"] == "train"]).astype(float)
    np.testing.assert_allclose(manifest.lead_mean_mv, train.mean(axis=(0, 1)) / 1000, atol=1e-12)
    np.testing.assert_allclose(manifest.lead_std_mv, train.std(axis=(0, 1)) / 1000, rtol=1e-9)
    assert manifest.first_row("val") == len(train)
    splits = {}
    for row in rows:
        assert splits.setdefault(row["record"][:5], (row["split"], row["shard"])) == (row["split"], row["shard"])


def test_webdataset_opens_the_shards(output):
    wds = pytest.importorskip("webdataset")
    manifest = read_manifest(output)
    urls = [str(output / shard.name) for shard in manifest.shards]
    seen = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    samples = pq.read_table(output / "samples.parquet").to_pylist()
    assert [s["__key__"] for s in seen] == [row["key"] for row in samples]
    for sample, row in zip(seen, samples):
        assert sample["ecg.npy"].shape == (12, 1000)
        assert sample["meta.json"]["patient"] == row["patient"]
        assert sample["meta.json"]["codes"] == row["codes"]
        assert sample["meta.json"]["rate"] == 100.0


def test_verify_finds_one_wrong_byte(folder, tmp_path):
    build(folder[0], tmp_path / "out")
    assert verify(tmp_path / "out").shards
    shard = tmp_path / "out" / "val-000000.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"val-000000.tar has sha256"):
        verify(tmp_path / "out")


def without_first_row(table):
    return table.slice(1)


def of_another_age(table):
    ages = table.column("age").to_pylist()
    return table.set_column(table.column_names.index("age"), "age", pa.array([ages[0] + 1, *ages[1:]], pa.float32()))


def with_another_key(table):
    keys = table.column("key").to_pylist()
    return table.set_column(table.column_names.index("key"), "key", pa.array(["000009-000009", *keys[1:]]))


@pytest.mark.parametrize(
    ("name", "change", "old", "message"),
    [
        ("samples.parquet", of_another_age, False, r"samples.parquet does not have the sha256"),
        ("samples.parquet", of_another_age, True, r"the row of sample 000000-000000 does not match its shard"),
        ("samples.parquet", with_another_key, True, r"the row of sample 000000-000000 does not match"),
        ("samples.parquet", without_first_row, True, r"has 7 rows for 8 samples"),
        ("private/records.parquet", without_first_row, False, r"records.parquet does not have the sha256"),
        ("private/records.parquet", with_another_key, True, r"its kept windows do not match"),
        ("private/records.parquet", lambda t: t.slice(0, 8), True, r"covers 8 of 9 records"),
    ],
)
def test_verify_reads_the_tables(tmp_path, name, change, old, message):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 8)
    write_record(root, "short", beats(1)[:10])
    build(root, output)
    assert verify(output).tables.keys() == {"samples.parquet"}
    file = pq.ParquetFile(output / name)
    parts = [file.read_row_group(i) for i in range(file.num_row_groups)]
    sizes = np.cumsum([0, *map(len, parts)])
    whole = change(pq.read_table(output / name))
    with pq.ParquetWriter(output / name, whole.schema) as writer:  # the same row groups
        for start, stop in itertools.pairwise(sizes):
            writer.write_table(whole.slice(start, stop - start))
    if old:  # a data set of before the hashes were kept
        (output / "private" / "records.sha256").unlink()
        content = json.loads((output / "manifest.json").read_text())
        del content["tables"], content["content_hash"]
        (output / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        verify(output)


def test_verify_works_out_moments_and_counts_anew(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 12)
    write_record(root, "padded", beats(77)[:800])
    write_record(root, "two", beats(78, leads=2), leads=("I", "II"))
    build(root, output, "min_seconds=5", "missing_leads=zero", "samples_per_shard=3", "split.val=0", "split.train=1.0",
          "split.test=0")  # fmt: skip
    assert sum(s.samples for s in verify(output).shards) == 14
    manifest = json.loads((output / "manifest.json").read_text())
    for private in (True, False):
        if not private:
            shutil.rmtree(output / "private")  # shards are copied without it
        for key, place, message in (
            ("lead_mean_mv", 11, "lead_mean_mv of V6 is" if private else "lead_(mean|std)_mv of V6 is"),
            ("lead_std_mv", 0, "lead_std_mv of I is" if private else "lead_(mean|std)_mv of I is"),
            ("counts", "sex", "counts by sex do not match"),
        ):
            wrong = manifest | {"content_hash": ""}  # as if of before it was kept
            wrong = json.loads(json.dumps(wrong))
            wrong[key][place] = {} if key == "counts" else wrong[key][place] * (1 + 1e-7)
            (output / "manifest.json").write_text(json.dumps(wrong))
            with pytest.raises(UserError, match=message):
                verify(output)
        (output / "manifest.json").write_text(json.dumps(manifest))
        assert verify(output)


def test_verify_finds_a_flipped_digit_anywhere_in_the_manifest(folder, tmp_path):
    build(folder[0], tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    text = path.read_text()
    for at in [i for i, c in enumerate(text) if c.isdigit()][::7]:
        flipped = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
        path.write_text(flipped)
        if json.loads(flipped) != json.loads(text):  # the last digits of a float may make no difference
            with pytest.raises(UserError):
                verify(tmp_path / "out")
    for at in (text.index('"numpy": "') + len('"numpy": "'), text.index('"seed": ') + len('"seed": ')):
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        with pytest.raises(UserError, match="has been modified since the build"):
            verify(tmp_path / "out")
    content = json.loads(text)
    del content["content_hash"]  # a data set of before it was kept
    path.write_text(json.dumps(content))
    assert verify(tmp_path / "out")


def test_same_bytes_with_any_number_of_workers_and_tasks(folder, output, tmp_path):
    words = ("samples_per_shard=12", "seed=3")
    build(folder[0], tmp_path / "two", *words, "workers=2")
    assert public_bytes(tmp_path / "two") == public_bytes(output)
    for task in (2, 0, 1):
        outcome = build(folder[0], tmp_path / "tasks", *words, "tasks=3", f"task={task}")
        assert outcome.state == ("built" if task == 1 else "waiting")
    assert public_bytes(tmp_path / "tasks") == public_bytes(output)


def test_second_build_does_nothing(folder, output):
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert build(folder[0], output, "samples_per_shard=12", "seed=3", "workers=2").state == "already built"
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != "plan.lock"} == {
        p: t for p, t in before.items() if p.name != "plan.lock"
    }


def test_changed_config_or_input_is_refused(tmp_path, monkeypatch):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 4)
    build(root, output)
    with pytest.raises(UserError, match=r"planned with seed=0, now seed=1"):
        build(root, output, "seed=1")
    monkeypatch.setenv("UMBRA_KEY", "x" * 20)
    with pytest.raises(UserError, match=r"key_id=public"):
        build(root, output)
    monkeypatch.delenv("UMBRA_KEY")
    write_record(root, "new", beats(9))
    with pytest.raises(UserError, match=r"record new is new"):
        build(root, output)
    (root / "new.hea").unlink()
    assert build(root, output).state == "already built"
    os.utime(root / "r0002_0.dat", ns=(1, 1))
    with pytest.raises(UserError, match=r"record r0002_0 has changed"):
        build(root, output)
    (root / "r0002_0.dat").unlink()
    with pytest.raises(UserError, match=r"record r0002_0 is gone"):
        build(root, output)


def test_foreign_folders_are_left_alone(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        build(folder[0], tmp_path)
    with pytest.raises(UserError, match=r"thesis.txt is not a folder"):
        build(folder[0], tmp_path / "thesis.txt")


def test_output_inside_input(tmp_path):
    write_folder(tmp_path, 3)
    build(tmp_path, tmp_path / "shards")
    write_record(tmp_path / "shards" / "private", "inside", beats(1))
    assert build(tmp_path, tmp_path / "shards").state == "already built"


def test_bad_records_are_counted_and_the_rest_is_built(tmp_path):
    root = tmp_path / "in"
    write_folder(root, 3)
    write_record(root, "short", beats(1)[:999])
    write_record(root, "truncated", beats(2))
    (root / "truncated.dat").write_bytes(b"123")
    write_record(root, "lost", beats(3))
    (root / "lost.dat").unlink()
    (root / "noise.hea").write_bytes(bytes(range(256)) * 3)
    write_record(root, "two", beats(4, leads=2), leads=("I", "II"))
    flat, high, gap, limit, micro = (beats(k) for k in range(5, 10))
    flat[:, 4] = 7
    high[500, 1] = 25000
    gap[3, 3] = -32768
    limit[3:6, 3] = 32767
    for name, x in (("flat", flat), ("high", high), ("gap", gap), ("limit", limit)):
        write_record(root, name, x)
    write_record(root, "micro", micro, gain="1(0)/mV")
    write_record(root, "mmhg", beats(11), gain="1000(0)/mmHg")
    outcome = build(root, tmp_path / "out")
    expected = {
        "short": "short",
        "truncated": "truncated",
        "lost": "missing_file",
        "noise": "header",
        "two": "missing_lead",
        "flat": "flat_lead",
        "high": "amplitude",
        "gap": "nan",
        "limit": "saturated",
        "micro": "units",
        "mmhg": "units",
    }
    assert rejected(tmp_path / "out") == expected
    assert outcome.kept == 3
    assert outcome.rejected["units"] == 2
    assert sum(outcome.rejected.values()) == 11


def test_records_that_the_table_does_not_name_are_told(tmp_path):
    ptbxl_folder(tmp_path / "in", "ptbxl_database.csv", "{")
    for n in range(4):
        write_record(tmp_path / "in" / "records100" / "00000", f"Schmidt{n}_lr", beats(n))
    outcome = build(tmp_path / "in", tmp_path / "out", config="ptbxl")
    assert (outcome.kept, len(outcome.remarks)) == (20, 1)  # the records of the other rate are named by their column
    assert outcome.remarks[0].startswith("4 records in the input folder are not in its table")
    assert plan.read_plan(tmp_path / "out").unlisted_examples == [f"records100/00000/Schmidt{n}_lr" for n in range(3)]
    assert b"Schmidt" not in b"".join(public_bytes(tmp_path / "out").values())


def test_columns_that_the_table_lacks_and_tables_that_are_not_read_are_told(tmp_path):
    root = tmp_path / "in"
    ptbxl_folder(root, "labels.csv", ";")
    lacking = ("source.table.patient=[nobody]", "source.table.sex=[gender]")
    said = build(root, tmp_path / "a", *lacking, config="ptbxl").remarks
    assert said[-1] == "labels.csv lacks the columns of source.table patient=[nobody] sex=[gender]"
    assert any(line.startswith("no record names a patient: each record counts as its own patient") for line in said)
    line = "labels.csv has patient ids, but is not used: set source.table.file=[labels.csv]"
    assert build(root, tmp_path / "b").remarks[-1] == line
    (root / "labels.csv").write_text("record,age\na,3\n")
    assert not [r for r in build(root, tmp_path / "c").remarks if "labels.csv" in r]


def test_unknown_sexes_are_told(tmp_path, capsys):
    from sharding.__main__ import main

    for n, sex in enumerate(("Female", "m", "Unknown", "weiblich", "weiblich", "")):
        write_record(tmp_path / "in", f"r{n}", beats(n), comments=(f"Sex: {sex}",))
    words = [f"input={tmp_path / 'in'}", "source.public=true"]
    main(["build", str(CONFIGS / "wfdb.yaml"), *words, f"output={tmp_path / 'out'}"])
    assert "  4 usable records have no known sex: unknown words" in capsys.readouterr().out
    assert plan.read_plan(tmp_path / "out").unknown_words["sex"] == {"weiblich": 2}
    outcome = build(tmp_path / "in", tmp_path / "new", "source.table.sex_values={weiblich: female}")
    assert outcome.remarks[0].startswith("2 usable records")


def test_no_hint_to_words_that_are_not_there(tmp_path):
    for n in range(4):
        write_record(tmp_path / "in", f"r{n}", beats(n))
    assert build(tmp_path / "in", tmp_path / "out").remarks[0] == "4 usable records have no known sex"
    assert plan.read_plan(tmp_path / "out").unknown_words["sex"] == {}


def test_records_without_a_patient_are_told_and_a_pattern_names_him(tmp_path, capsys):
    """Of a WFDB folder `PATIENT/RECORD` without ids each record is its own; by the pattern each folder is one."""
    from sharding.__main__ import main

    for n in range(12):
        write_record(tmp_path / "in" / f"p{n // 3}", f"r{n}", beats(n), comments=("Sex: F",))
    words = [f"input={tmp_path / 'in'}", "source.public=true"]
    main(["build", str(CONFIGS / "wfdb.yaml"), *words, f"output={tmp_path / 'own'}"])
    assert "no record names a patient: each record counts as its own patient (source.pat" in capsys.readouterr().out
    main(["status", str(tmp_path / "own")])
    assert "each record counts as its own patient" in capsys.readouterr().out
    assert not read_manifest(tmp_path / "own").patient_ids
    outcome = build(tmp_path / "in", tmp_path / "out", "source.patient_pattern=^([^/]+)/")
    assert (outcome.kept, outcome.patients, outcome.remarks) == (12, 4, [])
    assert read_manifest(tmp_path / "out").patient_ids
    name_of = {r["key"]: r["record"] for r in pq.read_table(tmp_path / "out/private/records.parquet").to_pylist()}
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    key = deidentify.load_key("", True, tmp_path)
    for row in rows:
        assert row["patient"] == deidentify.pseudonym(key, "wfdb", "patient", name_of[row["key"]].split("/")[0])
    write_record(tmp_path / "in", "r12", beats(12), comments=("Sex: F", "Patient ID: p0"))
    write_record(tmp_path / "in", "r13", beats(13), comments=("Sex: F",))
    outcome = build(tmp_path / "in", tmp_path / "mixed", "source.patient_pattern=^([^/]+)/")
    assert (outcome.kept, outcome.patients) == (14, 5)  # where it does not match, the header's word counts
    assert outcome.remarks[0].startswith("1 of 14 usable records name no patient: each")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("p[0-9+", "is no regular expression"),
        ("p[0-9]+", "has 0 groups: put"),
        ("(p)([0-9]+)", "has 2 groups: put"),
        ("^(q[0-9])", "finds no id in any record's path, as r0000_0"),
    ],
)
def test_wrong_patient_patterns(folder, tmp_path, pattern, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(folder[0], tmp_path / "out", f"source.patient_pattern={pattern}")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("change", ["is new", "is gone"])
def test_one_task_of_many_notices_records_that_come_and_go(tmp_path, change):
    write_folder(tmp_path / "in", 6)
    words = ("samples_per_shard=2", "tasks=2")
    assert build(tmp_path / "in", tmp_path / "out", *words, "task=0").state == "waiting"
    write_record(tmp_path / "in", "other", beats(9))
    gone = tmp_path / "in" / ("other.hea" if change == "is new" else "r0003_0.hea")
    if change == "is gone":
        gone.rename(tmp_path / "kept")
        (tmp_path / "in" / "other.hea").unlink()
    with pytest.raises(UserError, match=rf"planned from different input \(record {gone.stem} {change}"):
        build(tmp_path / "in", tmp_path / "out", *words, "task=1")
    if change == "is gone":
        (tmp_path / "kept").rename(gone)
    else:
        gone.unlink()
    assert build(tmp_path / "in", tmp_path / "out", *words, "task=1").state == "built"


def test_headers_in_capitals_are_records_too(tmp_path):
    signals = write_folder(tmp_path / "in", 3)
    write_record(tmp_path / "in" / "old", "REC", beats(7))
    (tmp_path / "in" / "old" / "REC.hea").rename(tmp_path / "in" / "old" / "REC.HEA")
    assert build(tmp_path / "in", tmp_path / "out").kept == 4
    rows = pq.read_table(tmp_path / "out" / "private" / "records.parquet").column("record").to_pylist()
    assert sorted(rows) == ["old/REC.HEA", *signals]
    (tmp_path / "in" / "old" / "REC.HEA").touch()
    with pytest.raises(UserError, match=r"record old/REC.HEA has changed"):
        build(tmp_path / "in", tmp_path / "out")


def test_values_that_do_not_fit_are_refused_not_clipped(tmp_path):
    root = tmp_path / "in"
    write_folder(root, 3)
    x = beats(5)
    x[10, 0] = 9000
    write_record(root, "big", x)
    build(root, tmp_path / "out", "resolution_uv=0.25")
    assert rejected(tmp_path / "out") == {"big": "clipped"}


def test_limb_leads_are_derived_and_order_goes_by_name(tmp_path):
    x = beats(1, leads=8)
    names = ("V6", "II", "I", "V1", "V2", "V3", "V4", "V5")
    for n in range(3):
        write_record(tmp_path / "in", f"r{n}", x, leads=names)
    build(tmp_path / "in", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    data = (tmp_path / "out" / "train-000000.tar").read_bytes()
    found = np.frombuffer(data, "<i2", 12000, manifest.geometry.first).reshape(12, 1000)
    one, two = x[:, 2].astype(float), x[:, 1].astype(float)
    for lead, expected in enumerate((one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2)):
        assert np.abs(found[lead] - expected).max() <= 0.5 + 1e-3
    assert (found[11] == x[:, 0]).all()
    assert not manifest.patient_ids


def test_long_records_give_several_windows_in_one_split(tmp_path):
    root = tmp_path / "in"
    for n in range(6):
        write_record(root, f"r{n}", np.vstack([beats(10 * n + k) for k in range(3)])[:2999])
    outcome = build(root, tmp_path / "out")
    assert (outcome.kept, outcome.patients) == (12, 6)
    rows = pq.read_table(tmp_path / "out" / "private" / "records.parquet").to_pylist()
    assert sorted((r["record"], r["window"]) for r in rows) == [(f"r{n}", w) for n in range(6) for w in range(2)]
    assert all(len({r["split"] for r in rows if r["record"] == f"r{n}"}) == 1 for n in range(6))
    bad = np.vstack([beats(1), beats(2)])
    bad[1500:1503, 0] = 32767
    write_record(tmp_path / "in2", "r", bad)
    outcome = build(tmp_path / "in2", tmp_path / "out2")
    assert (outcome.kept, dict(outcome.rejected)) == (1, {"saturated": 1})


def test_resampling_keeps_the_time_axis(tmp_path):
    time_axis = np.arange(5000) / 500
    x = np.rint(1000 * np.sin(2 * np.pi * 1.5 * time_axis[:, None] + np.arange(12))).astype("<i2")
    write_record(tmp_path / "in", "r", x, rate=500)
    build(tmp_path / "in", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    data = (tmp_path / "out" / "train-000000.tar").read_bytes()
    found = np.frombuffer(data, "<i2", 12000, manifest.geometry.first).reshape(12, 1000)
    assert np.abs(found[:, 20:-20] - x[::5].T[:, 20:-20]).max() <= 3


def ptbxl_folder(root: Path, table: str, separator: str) -> None:
    lines = [
        "ecg_id,patient_id,age,sex,strat_fold,scp_codes,report,filename_lr,filename_hr"
        if separator == "{"
        else "ecg_id,age,sex,strat_fold,scp_codes,patient_id,record"
    ]
    for n in range(20):
        low = f"records100/00000/{n:05d}_lr"
        write_record(root / "records100" / "00000", f"{n:05d}_lr", beats(n))
        age, sex, fold = (300 if n == 0 else 40 + n), n % 2, n % 10 + 1
        if separator == "{":
            high = f"records500/00000/{n:05d}_hr"
            write_record(root / "records500" / "00000", f"{n:05d}_hr", beats(n, 5000, 500), rate=500)
            codes = "\"{'NORM': 100.0, 'SR': 0.0}\""
            lines.append(f"{n},{1000 + n}.0,{age}.0,{sex},{fold},{codes},kein befund,{low},{high}")
        else:
            lines.append(f"{n},{age}.0,{sex},{fold},NORM;SR,{1000 + n}.0,{low}")
    (root / table).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("table", "separator"), [("ptbxl_database.csv", "{"), ("labels.csv", ";")])
def test_both_tables_of_ptbxl(tmp_path, table, separator):
    ptbxl_folder(tmp_path / "in", table, separator)
    folds = ["split.column=strat_fold", "split.train=[1,2,3,4,5,6,7]", "split.val=[9]", "split.test=[10]"]
    outcome = build(tmp_path / "in", tmp_path / "out", *folds, config="ptbxl")
    assert (outcome.kept, dict(outcome.rejected)) == (18, {"no_split": 2})
    samples = pq.read_table(tmp_path / "out" / "samples.parquet")
    assert samples.schema.field("strat_fold").type == "int64"
    manifest = read_manifest(tmp_path / "out")
    for row in samples.to_pylist():
        assert row["codes"] == ["NORM", "SR"]
        split = manifest.shards[row["shard"]].split
        assert row["strat_fold"] in {"train": range(1, 8), "val": [9], "test": [10]}[split]
    ages = {r["age"] for r in samples.to_pylist()}
    assert max(ages) == 90
    if separator == "{":
        build(tmp_path / "in", tmp_path / "high", "rate=250", config="ptbxl")
        names = pq.read_table(tmp_path / "high" / "private" / "records.parquet").column("record").to_pylist()
        assert all(name.startswith("records500") for name in names)


def test_parts_of_cinc_are_sources_and_spread_over_all_shards(tmp_path):
    parts = {"training/cpsc_2018/g1": "cinc-cpsc", "training/ptb-xl/g22": "cinc-ptbxl", "WFDB_Ga": "cinc-georgia"}
    for n, folder in enumerate(("elsewhere", *parts)):
        for i in range(60 if n else 2):
            write_record(tmp_path / "in" / folder, f"{'XAHE'[n]}{i:04d}", beats(1000 * n + i))
    outcome = build(tmp_path / "in", tmp_path / "out", "samples_per_shard=30", config="cinc")
    assert (outcome.kept, outcome.patients) == (182, 182)
    manifest, table = verify(tmp_path / "out"), pq.read_table(tmp_path / "out" / "samples.parquet")
    first = {"A": "cinc-cpsc", "H": "cinc-ptbxl", "E": "cinc-georgia", "X": "cinc"}
    rows = pq.read_table(tmp_path / "out" / "private" / "records.parquet").to_pylist()
    expected = {row["key"]: first[row["record"].rpartition("/")[2][0]] for row in rows}
    assert dict(zip(*(table.column(c).to_pylist() for c in ("key", "source")))) == expected
    shards = [(s, table.filter(pc.equal(table.column("shard"), i))) for i, s in enumerate(manifest.shards)]
    assert all({*parts.values()} <= {*rows.column("source").to_pylist()} for s, rows in shards if s.samples == 30)
    assert manifest.counts["source"]["merged"] == {"samples": 62, "patients": 62}  # two of the unnamed part are few
    with pytest.raises(UserError, match=r"source.parts.x=New York must be 1 to 40 letters"):
        build(tmp_path / "in", tmp_path / "new", "source.parts={x: New York}")
    with pytest.raises(UserError, match=r"source.parts: 'WFDB_Ga/' is a path"):
        build(tmp_path / "in", tmp_path / "new", "source.parts={WFDB_Ga/: georgia}")
    again = build(tmp_path / "in", tmp_path / "out", "samples_per_shard=30", config="cinc")
    assert again.state == "already built"
    absent = "these source.parts: cinc-chapman, cinc-cpsc-extra, cinc-incart, cinc-ningbo, cinc-ptb"
    assert absent in outcome.remarks[-1]
    assert absent in building.progress.status(tmp_path / "out")
    words = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'dry'}"]
    assert absent in building.dry_run(load(BuildConfig, CONFIGS / "cinc.yaml", words))
    with pytest.raises(UserError, match=r"none of its folders \(cpsc_2018, .*\) holds a record of .*elsewhere"):
        build(tmp_path / "in" / "elsewhere", tmp_path / "new", config="cinc")


def test_a_patient_of_two_parts_is_one(tmp_path):
    for part in ("a", "b"):
        write_folder(tmp_path / "in" / part, 12)
    outcome = build(tmp_path / "in", tmp_path / "out", "source.parts={a: one, b: two}")
    assert (outcome.kept, outcome.patients) == (24, 12)


def test_shards_are_read_back_as_tars(tmp_path):
    """The windows of two built sets, each with its source's name, spread over new shards with new splits."""
    for n, name in enumerate(("one", "two")):
        write_folder(tmp_path / name, 20 * (n + 1), 2)
        build(tmp_path / name, tmp_path / "built" / name, f"source.name={name}")
    words = ["source.array.rate=100", "source.array.units=uV", "source.array.signals=ecg.npy", "samples_per_shard=30"]
    words += ["source.array.meta=meta.json", f"source.array.leads=[{','.join(LEADS)}]", "source.parts={one: A, two: B}"]
    outcome = build(tmp_path / "built", tmp_path / "joined", *words, config="tars")
    assert (outcome.kept, outcome.patients) == (120, 60)

    def windows(output: Path) -> set[tuple]:
        manifest, found = read_manifest(output), set()
        for row in pq.read_table(output / "samples.parquet").to_pylist():
            start = manifest.geometry.first + row["index"] * manifest.geometry.stride
            data = (output / manifest.shards[row["shard"]].name).read_bytes()[start : start + 24000]
            found.add((row["age"], row["sex"], *row["codes"], data))
        return found

    joined = windows(tmp_path / "joined")
    assert len(joined) == 80  # the first set's records stand in the second as well
    assert joined == windows(tmp_path / "built" / "one") | windows(tmp_path / "built" / "two")
    table = pq.read_table(tmp_path / "joined" / "samples.parquet")
    assert table.column("source").to_pylist().count("A") == 40
    places = {*zip(*(table.column(c).to_pylist() for c in ("shard", "source")))}
    shards = read_manifest(tmp_path / "joined").shards
    assert all((i, name) in places for i, shard in enumerate(shards) for name in "AB" if shard.samples == 30)


def test_wrong_labels(tmp_path):
    ptbxl_folder(tmp_path / "in", "labels.csv", ";")
    for words, message in (
        ("labels=[strat_fol]", "no column 'strat_fol'; did you mean 'strat_fold'"),
        ("labels=[patient_id]", "must stay in private"),
        ("split.column=fold", "no column 'fold'"),
        ("split.column=strat_fold", "needs split.train"),
        ("split.train=[1]", "must be fractions"),
    ):
        with pytest.raises(UserError, match=message):
            build(tmp_path / "in", tmp_path / "out", words, config="ptbxl")
    with pytest.raises(UserError, match="need a table"):
        build(tmp_path / "in", tmp_path / "out", "labels=[strat_fold]")
    (tmp_path / "in" / "ptbxl_database.csv").write_text("ecg_id\n1\n")
    with pytest.raises(
        UserError, match=r"known data set, which this config does not read: use configs/shard/ptbxl.yaml"
    ):
        build(tmp_path / "in", tmp_path / "other")
    with pytest.raises(UserError, match=r"holds none of ptbxl_database.csv"):
        build(tmp_path / "in" / "records100", tmp_path / "out", config="ptbxl")


def test_vanished_input_stops_the_shard_and_the_same_command_goes_on(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 20)
    config = load(BuildConfig, None, [f"input={root}", f"output={output}", "samples_per_shard=4"])
    config.source.public = True
    config = validated(config)
    key = building.deidentify.load_key("", True, root)
    building._ensure_plan(output, config, key, None)
    moved = root / "r0005_0.dat"
    data, times = moved.read_bytes(), moved.stat().st_mtime_ns
    moved.unlink()
    found = plan.read_plan(output)
    job = partial(building.build_shard, config, found.meta_bytes)
    with pytest.raises(UserError, match=r"1 shard failed: .*r0005_0 has vanished"):
        building.workers.write_shards(output, found, found.shards, job, None, "record")
    moved.write_bytes(data)
    os.utime(moved, ns=(times, times))
    assert build(root, output, "samples_per_shard=4").kept == 20
    build(root, tmp_path / "fresh", "samples_per_shard=4")
    assert public_bytes(output) == public_bytes(tmp_path / "fresh")


KILLER = Path(__file__).parents[1] / "support" / "killed_before"
MOMENTS = [  # in the order of the work: the file that a killed build was about to name
    "private/plan.parquet",
    "private/plan.json",
    "train-000002.tar",
    "private/stats/train-000004.tar.parquet",
    "private/stats/train-000009.tar.json",
    "private/stats/test-000000.tar.json",
    "private/records.parquet",
    "samples.parquet",
    "manifest.json",
]


def _killed(root: Path, output: Path, moment: str) -> None:
    """Starts a build that is killed, with its workers, just before the file gets its name."""
    words = [f"input={root}", f"output={output}", "source.public=true", "samples_per_shard=16", "workers=2"]
    command = [sys.executable, "-m", "sharding", "build", str(CONFIGS / "wfdb.yaml"), *words]
    path = os.pathsep.join(map(str, [KILLER, *sys.path[1:]]))
    environment = os.environ | {"KILLED_BEFORE": moment, "PYTHONPATH": path}
    done = subprocess.run(command, timeout=120, capture_output=True, start_new_session=True, env=environment)
    assert done.returncode == -signals.SIGKILL, (moment, done.stderr)
    assert not (output / moment).exists()


def _kill_and_go_on(tmp_path: Path, records: int, moments: list[str]) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, records)
    build(root, tmp_path / "fresh", "samples_per_shard=16")
    for moment in moments:
        assert (tmp_path / "fresh" / moment).exists(), "no build writes it"
        _killed(root, output, moment)
    build(root, output, "samples_per_shard=16", "workers=2")
    assert public_bytes(output) == public_bytes(tmp_path / "fresh")
    assert verify(output)


def test_killed_builds_go_on(tmp_path):
    _kill_and_go_on(tmp_path, 50, ["private/stats/train-000002.tar.json", "samples.parquet"])


@pytest.mark.full
@pytest.mark.timeout(600)
def test_builds_killed_at_each_moment_go_on(tmp_path):
    _kill_and_go_on(tmp_path, 400, MOMENTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "wfdb.yaml", "input=nope", "output=out"], "input folder nope does not exist"),
        (["build", "wfdb.yaml", "input=empty", "output=out"], "is empty"),
        (
            ["build", "wfdb.yaml", "input=other", "output=out", "source.public=true"],
            "contains no file with the ending .hea",
        ),
        (["build", "wfdb.yaml", "input=other", "output=out"], "no pseudonym key"),
        (["build", "wfdb.yaml", "inputs=x"], "did you mean 'input'"),
        (["build", "wfdb.yaml", "input=x", "extra"], "is neither a config file (.yaml) nor key=value"),
        (["build", "nope.yaml"], "does not exist"),
        (["bild"], "unknown command 'bild'"),
        (["status", "empty"], "holds no plan"),
        (["verify", "empty"], "manifest.json does not exist"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    from sharding.__main__ import main
    from umbra.config import command

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UMBRA_KEY", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    words = [str(CONFIGS / w) if w == "wfdb.yaml" else w for w in words]
    monkeypatch.setattr(sys, "argv", ["sharding", *words])
    with pytest.raises(SystemExit) as stop:
        command(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_status_counts_no_dead_writers(tmp_path):
    write_folder(tmp_path / "in", 6)
    build(tmp_path / "in", tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(60)
    for process in (os.getpid(), ended.pid):
        (tmp_path / "out" / f"train-00000{process == ended.pid:d}.tar.partial-{os.uname().nodename}-{process}").touch()
    assert "1 being written" in building.progress.status(tmp_path / "out")


def test_status_and_dry_run(folder, output, tmp_path, capsys):
    from sharding.__main__ import main

    main(["status", str(output)])
    assert "complete" in capsys.readouterr().out
    words = [f"input={folder[0]}", f"output={tmp_path / 'dry'}", "source.public=true", "--dry-run"]
    main(["build", str(CONFIGS / "wfdb.yaml"), *words])
    assert "would write 3 shards, 60 windows of 12 x 1000" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
