"""Joined data sets, against their parts: read by tarfile and numpy alone, or placed by a second implementation."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal as signals
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import build as building
from sharding import join as joining
from sharding import progress
from sharding.join import JoinConfig, copies, place
from sharding.options import BuildConfig
from sharding.report import report, summary
from sharding.verify import verify
from tests.support.handmade import make_shards
from tests.support.recordings import LEADS, beats, write_folder, write_record
from trainer.data.exclude import changes
from trainer.data.metadata import Metadata
from trainer.data.order import Order
from trainer.data.remote.fetch import Remote
from trainer.data.remote.store import open_data_set
from trainer.data.shards import Shards
from trainer.evaluate.reading import read_task
from trainer.evaluate.task import TaskConfig
from umbra.config import load
from umbra.errors import UserError
from umbra.schema import SPLITS, read_manifest

HOSPITAL = ["labels=[grade,site]", "split.column=fold", "split.train=[1,2]", "split.val=[3]", "split.test=[4]"]


def build(source: Path, output: Path, *words: str) -> building.Outcome:
    fixed = [f"input={source}", f"output={output}", "source.public=true", "samples_per_shard=7"]
    return building.build(load(BuildConfig, None, [*fixed, *words]))


def join(output: Path, *parts: Path, **options) -> building.Outcome:
    return joining.join(JoinConfig([str(p) for p in parts], str(output), **options))


def windows(root: Path) -> list[dict]:
    """All samples, in the order of the shards: split, shard, row of the table, metadata, the array's bytes."""
    manifest, found = read_manifest(root), []
    rows = iter(pq.read_table(root / "samples.parquet").to_pylist())
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(root / shard.name) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        for index, key in enumerate(dict.fromkeys(name.partition(".")[0] for name in members)):
            row = next(rows)
            assert (row["shard"], row["index"], row["key"]) == (number, index, key)
            array = np.load(BytesIO(members[f"{key}.ecg.npy"]))
            meta = json.loads(members[f"{key}.meta.json"])
            found.append({"split": shard.split, "row": row, "meta": meta, "x": array, "bytes": array.tobytes()})
    assert next(rows, None) is None
    return found


def facts(window: dict) -> dict:
    """What a join must keep of a sample."""
    return {k: v for k, v in window["row"].items() if k not in ("shard", "index", "key")} | window["meta"]


def public_bytes(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}


def hospital(root: Path) -> None:
    """24 records of 16 patients with a table: fold, grade (words), site (numbers); one lead of some is missing."""
    with open(root / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["record", "patient_id", "age", "sex", "codes", "fold", "grade", "site"])
        for n in range(24):
            leads = [lead for lead in LEADS if n % 4 or lead != "V3"]
            x = beats(5000 + n)[:, [LEADS.index(lead) for lead in leads]]
            write_record(root, f"h{n}", x, leads=tuple(leads))
            patient = n * 2 // 3
            codes = ("SR", "AFIB;NORM")[n % 2]
            table.writerow(
                [
                    f"h{n}",
                    f"pat{patient}",
                    30 + n,
                    "FM"[n % 2],
                    codes,
                    patient % 4 + 1,
                    ("LMI", "IMI")[patient // 4 % 2],
                    n % 3,
                ]
            )


TABLE = ["source.name=hospital", "source.table.file=[table.csv]", "missing_leads=zero"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """`site` with labels, given splits and zero-filled leads; `wide` without, of short, padded records among others."""
    root = tmp_path_factory.mktemp("sets")
    (root / "in").mkdir()
    hospital(root / "in")
    build(root / "in", root / "site", *TABLE, *HOSPITAL)
    write_folder(root / "two", 30, 2)
    for n in range(6):
        write_record(root / "two", f"short{n}", beats(900 + n, 700), comments=(f"Patient ID: {1000 + n}", "Sex: F"))
    flat = beats(7)
    flat[:, 3] = 5
    write_record(root / "two", "r0003_flat", flat, comments=("Patient ID: 1003", "Sex: F"))
    write_record(root / "two", "tiny", beats(8, 100))
    build(root / "two", root / "wide", "seed=5", "min_seconds=5")
    return root


@pytest.fixture(scope="module")
def joined(sets) -> Path:
    join(sets / "joined", sets / "site", sets / "wide")
    return sets / "joined"


def test_all_that_the_parts_know_is_kept(sets, joined):
    of_parts = {w["bytes"]: (w["split"], facts(w)) for part in ("site", "wide") for w in windows(sets / part)}
    found = windows(joined)
    assert len(found) == len(of_parts) == 24 + 66
    assert len({w["row"]["key"] for w in found}) == len(found)
    for window in found:
        split, known = of_parts[window["bytes"]]
        assert window["split"] == split
        blank = {"grade": None, "site": None} if known["source"] == "wfdb" else {}
        assert facts(window) == blank | known
    assert {tuple(w["row"]["leads"]) for w in found if w["row"]["source"] == "hospital"} == {
        LEADS,
        tuple(lead for lead in LEADS if lead != "V3"),
    }
    splits = [s.split for s in read_manifest(joined).shards]
    assert splits == sorted(splits, key=SPLITS.index)
    assert verify(joined).counts["source"] == {
        "hospital": {"samples": 24, "patients": 16},
        "wfdb": {"samples": 66, "patients": 30},
    }


def test_moments_are_those_of_all_real_train_samples(joined):
    values = defaultdict(list)
    for w in windows(joined):
        if w["split"] == "train":
            length = 700 if "padded" in w["meta"]["flags"] else 1000
            for lead in w["row"]["leads"]:
                values[lead].append(w["x"][LEADS.index(lead), :length].astype(float))
    manifest = read_manifest(joined)
    for lead, mean, deviation in zip(LEADS, manifest.lead_mean_mv, manifest.lead_std_mv):
        x = np.concatenate(values[lead])
        assert mean == pytest.approx(x.mean() / 1000, abs=1e-12)
        assert deviation == pytest.approx(x.std() / 1000, rel=1e-9)
    assert any(sum(map(len, values[lead])) % 1000 for lead in LEADS)  # some are padded


def test_every_record_is_accounted_for(sets, joined):
    expected = Counter()
    for part in ("site", "wide"):
        for row in pq.read_table(sets / part / "private" / "records.parquet").to_pylist():
            expected[f"{part}:{row['record']}", row["window"], row["status"], row["reason"], row["split"]] += 1
    rows = pq.read_table(joined / "private" / "records.parquet").to_pylist()
    assert Counter((r["record"], r["window"], r["status"], r["reason"], r["split"]) for r in rows) == expected
    shards = read_manifest(joined).shards
    samples = {row["key"]: shards[row["shard"]].name for row in pq.read_table(joined / "samples.parquet").to_pylist()}
    assert {r["key"]: r["shard"] for r in rows if r["key"]} == samples
    assert summary(joined)["rejected"] == {"flat_lead": 1, "short": 1}


def test_the_trainer_reads_it(sets, joined, tmp_path):
    """A task on a part's label column sees the part's labels and no others; each sample comes once an epoch."""
    alone, both = (read_task(TaskConfig("t", column="grade", data=str(p))) for p in (sets / "site", joined))
    assert both.names == alone.names == ["IMI", "LMI"]
    for split in SPLITS:
        one, other = getattr(alone, split), getattr(both, split)
        assert sorted(one.patient.tolist()) == sorted(other.patient.tolist())
        assert Counter(one.target.argmax(1).tolist()) == Counter(other.target.argmax(1).tolist())
    site = Metadata(joined, tmp_path / "columns").column("site").values
    assert np.isnan(site).sum() == 66
    assert sorted(site[~np.isnan(site)]) == sorted(n % 3 for n in range(24))
    metadata = Metadata(joined, tmp_path / "columns")
    rows = np.arange(90)
    patient, partner = metadata.column("patient").values, metadata.partners(rows, 0, 0)
    assert (patient[partner] == patient).all()
    assert (partner != rows).sum() == sum(n for n in Counter(patient.tolist()).values() if n > 1)
    train = Shards(joined, "train")
    order = Order(train.counts, 0, 4, 2)
    seen = order.steps(0, order.steps_per_epoch).ravel()
    assert len(set(seen.tolist())) == len(seen) == train.count // 4 * 4
    left = Order(train.counts, 0, 4, 2, changes=changes([train.shards[0].name], train.shards, {}))
    rest = left.steps(0, left.steps_per_epoch).ravel()
    assert rest.min() >= train.counts[0]
    remote = open_data_set(Remote(f"pipe:cat {joined}/{{}}"), tmp_path / "cache")
    assert read_manifest(remote) == read_manifest(joined)


def torn(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of one hospital: patients 0 to 19 with other records in each, 0 to 4 with one record in both."""
    for part, (first, last) in {"a": (0, 20), "b": (10, 30)}.items():
        for p in range(first, last):
            for n in range(2):
                x = beats(p * 10 + n + 1000 * (part == "b"))
                comments = (f"Patient ID: {p}", "Sex: F", "Age: 50")
                write_record(tmp_path / part, f"r{p}_{n}", x, comments=comments)
        for p in range(10, 15):
            write_record(tmp_path / part, f"same{p}", beats(77700 + p), comments=(f"Patient ID: {p}", "Sex: F"))
        x = beats(1)
        x[:, 0] = 3
        write_record(tmp_path / part, "flat", x, comments=("Patient ID: 12", "Sex: F"))
    for part, seed in (("a", 1), ("b", 2)):
        build(
            tmp_path / part,
            tmp_path / f"set-{part}",
            f"seed={seed}",
            "split.train=0.4",
            "split.val=0.3",
            "split.test=0.3",
        )
    return tmp_path / "set-a", tmp_path / "set-b"


def test_a_patient_of_two_parts_stays_in_the_strictest_split(tmp_path):
    one, other = torn(tmp_path)
    outcome = join(tmp_path / "out", one, other)
    before = defaultdict(set)
    for part in (one, other):
        for w in windows(part):
            before[w["row"]["patient"]].add(w["split"])
    found = windows(tmp_path / "out")
    assert len(found) == 85  # 90 of which five stand in both
    assert len({w["bytes"] for w in found}) == 85
    places = defaultdict(list)
    for n, w in enumerate(found):
        places[w["row"]["patient"]].append((n, w["split"], w["row"]["shard"]))
    assert len(places) == 30
    for patient, at in places.items():
        (split,) = {s for _, s, _ in at}
        assert split == max(before[patient], key=SPLITS.index)
        assert len({shard for _, _, shard in at}) == 1
        assert [n for n, _, _ in at] == list(range(at[0][0], at[0][0] + len(at)))  # next to each other
    assert verify(tmp_path / "out")
    conflicts = {p for p, splits in before.items() if len(splits) > 1}
    assert outcome.rejected == {"duplicate_record": 5}
    assert outcome.remarks[0].startswith("10 patients stand in several parts and are kept together")
    assert outcome.remarks[1].startswith(
        f"{len(conflicts)} of them stood in different splits and are now in one, test bef"
    )
    assert any(str(p) in outcome.remarks[1] for p in conflicts)
    moves = pq.read_table(tmp_path / "out" / "private" / "moves.parquet").to_pylist()
    assert {m["patient"] for m in moves if m["split"] != m["now"]} == conflicts
    assert all(before[m["patient"]] >= {m["split"], m["now"]} for m in moves)
    text = progress.status(tmp_path / "out")
    assert all(line in text for line in outcome.remarks)
    assert "10 patients stand in several parts" in report(tmp_path / "out").read_text()
    rows = pq.read_table(tmp_path / "out" / "private" / "records.parquet").to_pylist()
    assert len(rows) == 92
    assert Counter(r["reason"] for r in rows) == {None: 85, "duplicate_record": 5, "flat_lead": 2}


def export(root: Path, name: str, records: range, columns: dict, seed: int) -> Path:
    """A set of records of one hospital, two a patient, with a table of these columns: cells by record number."""
    (root / name).mkdir(parents=True)
    with open(root / name / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["record", "patient_id", *columns])
        for n in records:
            write_record(root / name, f"{name}{n}", beats(4000 + n))
            table.writerow([f"{name}{n}", f"pat{n // 2}", *(cell(n) for cell in columns.values())])
    labels = ",".join(set(columns) - {"age", "sex", "codes"})
    words = ("source.name=hospital", "source.table.file=[table.csv]", f"labels=[{labels}]", f"seed={seed}")
    build(root / name, root / f"set-{name}", *words, "split.train=0.5", "split.val=0.25", "split.test=0.25")
    return root / f"set-{name}"


def test_a_window_of_two_parts_keeps_what_both_know(tmp_path):
    a, b = (
        {
            "age": lambda n: "" if n % 3 == 0 else 20 + n,
            "sex": lambda n: "female" if n % 4 else "",
            "codes": lambda n: "SR" if n % 2 else "NORM;SR",
            "grade": lambda n: n % 5 or "",
            "score": lambda n: n / 4,
        },
        {
            "age": lambda n: 20 + n + (n == 20),
            "sex": lambda n: "" if n % 5 == 0 else "male" if n % 10 == 3 else "female",
            "codes": lambda n: "AFIB;SR" if n % 3 else "",
            "grade": lambda n: n % 7,
            "weight": lambda n: 50 + n,
        },
    )
    of = {"a": (range(0, 50), a), "b": (range(10, 60), b)}
    parts = [export(tmp_path, name, *of[name], seed) for seed, name in enumerate(of)]
    outcome = join(tmp_path / "out", *parts)
    assert outcome.rejected == {"duplicate_record": 40}
    verify(tmp_path / "out")  # table and metadata agree
    records = pq.read_table(tmp_path / "out" / "private" / "records.parquet").to_pylist()
    kept = {r["key"]: r["record"].removeprefix("set-") for r in records if r["key"]}
    expected_unlike, found = Counter(), windows(tmp_path / "out")
    assert sorted(int(kept[w["row"]["key"]][3:]) for w in found) == list(range(60))
    homes = Counter(kept[w["row"]["key"]][0] for w in found if 10 <= int(kept[w["row"]["key"]][3:]) < 50)
    assert min(homes["a"], homes["b"]) > 0  # copies of either part are dropped
    for w in found:
        name, row = kept[w["row"]["key"]], w["row"]
        n, mine = int(name[3:]), name[0]
        order = [mine, "b" if mine == "a" else "a"]
        tables = [of[part][1] for part in order if n in of[part][0]]
        codes = [word for t in tables for word in t["codes"](n).split(";") if word]
        assert row["codes"] == w["meta"]["codes"]
        assert len(set(row["codes"])) == len(row["codes"])
        assert set(row["codes"]) == set(codes)
        for column in ("age", "sex", "grade", "score", "weight"):
            said = [t[column](n) for t in tables if column in t and t[column](n) != ""]
            empty = row[column] is None or row[column] != row[column]
            assert empty if not said else row[column] == said[0], (n, column)
            if len(set(said)) > 1:
                expected_unlike[row["key"], column] += 1
    listed = pq.read_table(tmp_path / "out" / "private" / "contradictions.parquet").to_pylist()
    assert Counter((r["key"], r["column"]) for r in listed) == expected_unlike
    assert {column for _, column in expected_unlike} == {"age", "sex", "grade"}
    assert all(r["record"].removeprefix("set-") == kept[r["key"]] and r["kept"] != r["dropped"] for r in listed)
    (line,) = [line for line in outcome.remarks if "contradict" in line]
    assert line.startswith(f"{len(listed)} cells (labels, age, sex, codes) of windows that stand in several parts")
    assert line in progress.status(tmp_path / "out")


def test_flags_are_those_of_the_windows_that_are_kept(tmp_path):
    """Flags in the metadata and, as `at_limit` and `still_ends`, in private/ alone: one number everywhere."""
    kinds = {n: ("at_limit", "still_ends", "checksum", None)[n % 4] for n in range(40)}
    for part, numbers in {"a": range(0, 28), "b": range(12, 40)}.items():
        for n in numbers:
            x, comments = beats(6000 + n), (f"Patient ID: {n // 2}", "Sex: F")
            if kinds[n] == "still_ends":
                x[-40:] = x[-41]
            if kinds[n] == "at_limit":
                x = x * np.int16(20)
                x[x.argmax(axis=0)[0], 0] = 32767
            write_record(tmp_path / part, f"r{n}", x, comments=comments, gain=f"{1000 * (1 + 19 * (n % 4 == 0))}(0)/mV")
            if kinds[n] == "checksum":
                header = tmp_path / part / f"r{n}.hea"
                header.write_text(re.sub(r" 16 0 (-?\d+) -?\d+ 0 I\n", r" 16 0 \1 12345 0 I\n", header.read_text()))
        seed = f"seed={ord(part)}"
        build(tmp_path / part, tmp_path / f"set-{part}", seed, "split.train=0.5", "split.val=0.25", "split.test=0.25")
    parts = [tmp_path / f"set-{part}" for part in "ab"]
    assert [read_manifest(p).counts["flags"] for p in parts] == [{"at_limit": 7, "checksum": 7, "still_ends": 7}] * 2
    outcome = join(tmp_path / "out", *parts)
    assert outcome.rejected == {"duplicate_record": 16}
    expected = {"at_limit": 10, "checksum": 10, "still_ends": 10}
    assert outcome.flags == read_manifest(tmp_path / "out").counts["flags"] == expected
    assert summary(tmp_path / "out")["flags"] == expected
    text = progress.status(tmp_path / "out")
    assert all(re.search(rf"kept, {flag} +10 ", text) for flag in expected)
    shutil.rmtree(parts[1] / "private")  # whose windows have flags is not known: its numbers are added
    outcome = join(tmp_path / "bare", *parts)
    assert outcome.flags == read_manifest(tmp_path / "bare").counts["flags"]
    assert outcome.flags["checksum"] == 10
    assert 10 <= outcome.flags["at_limit"] <= 14


CELL = st.one_of(st.none(), st.just(float("nan")), st.integers(0, 2))
ROW = st.fixed_dictionaries({"age": CELL, "grade": CELL, "codes": st.lists(st.sampled_from("abc"), unique=True)})


@given(ROW, st.lists(ROW, max_size=3))
def test_no_cell_is_lost_when_copies_are_merged(own, others):
    cells, unlike = copies.merged(own, others)
    for name in ("age", "grade"):
        said = [row[name] for row in (own, *others) if row[name] is not None and row[name] == row[name]]
        assert said[:1] == [cells[name]] * bool(said)
        assert [u.dropped for u in unlike if u.column == name] == [str(v) for v in said if v != said[0]]
    assert cells["codes"][: len(own["codes"])] == own["codes"]
    assert set(cells["codes"]) == {code for row in (own, *others) for code in row["codes"]}
    assert len(set(cells["codes"])) == len(cells["codes"])


def test_codes_that_do_not_fit_the_metadata_are_listed():
    """The copy's label is taken; what the metadata repeats stays, so that both agree."""
    empty = {"part": 0, "shard": 0, "patient": 1, "age": None, "codes": ["own"], "grade": None}
    rows = pa.Table.from_pylist([empty, empty | {"part": 1, "age": 50.0, "codes": ["x" * 90], "grade": 3}])
    rows = rows.append_column("sex", pa.nulls(2, pa.string()))
    meta = json.dumps({"age": None, "sex": None, "codes": ["own"]}).encode()
    for size, codes, count in ((200, ["own", "x" * 90], 0), (100, ["own"], 2)):
        found = copies.find(rows, (0, 0), lambda row: (np.ones((2, 3), "<i2"), meta), size)
        assert found.dropped == {1}
        assert found.cells[0]["codes"] == json.loads(found.metadata[0])["codes"] == codes
        assert found.cells[0]["age"] == json.loads(found.metadata[0])["age"] == (50 if count == 0 else None)
        assert len(found.metadata[0]) == size
        assert found.cells[0]["grade"] == 3
        assert [u.column for u in found.unlike[0]] == ["age", "codes"][:count]
        assert copies.changed(rows, found.cells).column("codes").to_pylist() == [codes, ["x" * 90]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), max_size=40),
    st.lists(st.sampled_from(SPLITS), min_size=8, max_size=8),
)
def test_who_moves_where_by_a_plain_search(samples, splits):
    patients, places = (np.array([s[i] for s in samples], np.int64) for i in (0, 1))
    expected = []
    for patient in sorted(set(patients.tolist())):
        his = sorted({p for who, p in samples if who == patient})
        home = next(p for split in ("test", "val", "train") for p in his if splits[p] == split)
        expected += [(patient, p, home, splits[p], splits[home], samples.count((patient, p))) for p in his if p != home]
    moves = place.moved(patients, places, splits).to_pylist()
    assert sorted(
        tuple(m[k] for k in ("patient", "place", "home", "split", "now", "windows")) for m in moves
    ) == sorted(expected)


def test_the_order_of_the_work_and_restarts_change_no_byte(tmp_path, monkeypatch):
    one, other = torn(tmp_path)
    join(tmp_path / "out", one, other)
    join(tmp_path / "two", one, other, workers=2)
    assert public_bytes(tmp_path / "out") == public_bytes(tmp_path / "two")
    assert join(tmp_path / "out", one, other).state == "already built"
    expected, private = public_bytes(tmp_path / "two"), (tmp_path / "two/private/records.parquet").read_bytes()
    names = [s.name for s in read_manifest(tmp_path / "two").shards]
    for lost in (names[0], names[-1], "samples.parquet", "manifest.json"):
        (tmp_path / "out" / lost).unlink()
        assert join(tmp_path / "out", one, other).state == "built"
        assert public_bytes(tmp_path / "out") == expected
        assert (tmp_path / "out/private/records.parquet").read_bytes() == private
    shutil.move(one, tmp_path / "elsewhere")  # the parts may move between two starts
    (tmp_path / "out" / names[1]).unlink()
    with pytest.raises(UserError, match="set-a is no folder"):
        join(tmp_path / "out", one, other)
    shutil.move(tmp_path / "elsewhere", tmp_path / "b" / "set-a")
    assert join(tmp_path / "out", tmp_path / "b" / "set-a", other).state == "built"
    assert public_bytes(tmp_path / "out") == expected


def test_a_join_resumes_as_it_began(sets, tmp_path):
    """Parts renamed meanwhile keep their labels; one that lost its private/ stops it in one line."""
    names = {"site": "first", "wide": "second"}
    for part in names:
        shutil.copytree(sets / part, tmp_path / part)
    join(tmp_path / "fresh", tmp_path / "site", tmp_path / "wide")
    last = sorted((tmp_path / "wide").glob("*.tar"))[-1]
    last.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="1 shard failed"):
        join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")
    (tmp_path / "aside").rename(last)
    one, other = ((tmp_path / part).rename(tmp_path / new) for part, new in names.items())
    (other / "private").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"part .*second has lost its private/ folder"):
        join(tmp_path / "out", one, other)
    (tmp_path / "aside").rename(other / "private")
    assert join(tmp_path / "out", one, other, workers=2).state == "built"
    records = "private/records.parquet"
    assert pq.read_table(tmp_path / "out" / records).equals(pq.read_table(tmp_path / "fresh" / records))
    assert public_bytes(tmp_path / "out") == public_bytes(tmp_path / "fresh")
    shutil.rmtree(other / "private")
    assert join(tmp_path / "out", one, other).state == "already built"


def test_parts_that_gain_private_tables_are_joined_as_they_began(sets, tmp_path):
    for part in ("site", "wide"):
        shutil.copytree(sets / part, tmp_path / part)
    (tmp_path / "wide" / "private").rename(tmp_path / "aside")
    join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")
    before = pq.read_table(tmp_path / "out" / "private" / "records.parquet")
    (tmp_path / "aside").rename(tmp_path / "wide" / "private")
    (tmp_path / "out" / read_manifest(tmp_path / "out").shards[-1].name).unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    assert join(tmp_path / "out", tmp_path / "site", tmp_path / "wide").state == "built"
    assert pq.read_table(tmp_path / "out" / "private" / "records.parquet").equals(before)
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "private" / "join.json").write_text('{"parts": ["a"], "bases": []}')
    with pytest.raises(UserError, match=r"join.json is damaged .*: delete the output and join again"):
        join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")


def test_a_killed_join_is_not_there_and_goes_on(tmp_path):
    one, other = torn(tmp_path)
    join(tmp_path / "fresh", one, other)
    command = [sys.executable, "-m", "sharding", "join", str(one), str(other), f"output={tmp_path / 'out'}"]
    dice, killed = random.Random(3), 0
    for done in (0, 2, 5):
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            limit = time.monotonic() + 60
            stats = tmp_path / "out" / "private" / "stats"
            while len(list(stats.glob("*.json"))) < done and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.02))
            if process.poll() is None:
                os.killpg(process.pid, signals.SIGKILL)
                killed += 1
                assert not (tmp_path / "out" / "manifest.json").exists() or done == 5
    assert killed
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    assert public_bytes(tmp_path / "out") == public_bytes(tmp_path / "fresh")
    assert verify(tmp_path / "out")


def test_joined_sets_are_joined_but_nothing_twice(sets, joined, tmp_path):
    for n in range(12):
        write_record(tmp_path / "in", f"r{n}", beats(33000 + n), comments=(f"Patient ID: {n}", "Sex: F"))
    build(tmp_path / "in", tmp_path / "third", "source.name=third")
    join(tmp_path / "out", joined, tmp_path / "third")
    assert verify(tmp_path / "out")
    found = {w["bytes"]: (w["split"], facts(w)) for w in windows(tmp_path / "out")}
    assert all(found[w["bytes"]] == (w["split"], facts(w)) for w in windows(joined))
    manifest = read_manifest(tmp_path / "out")
    assert [leaf["name"] for leaf in manifest.config["parts"]] == ["hospital", "wfdb", "third"]
    assert len(windows(tmp_path / "out")) == 102
    records = pq.read_table(tmp_path / "out" / "private" / "records.parquet").column("record").to_pylist()
    assert "joined:site:h0" in records
    for parts in ((joined, sets / "site"), (sets / "wide", tmp_path / "out"), (joined, tmp_path / "out")):
        with pytest.raises(UserError, match=r"hold the same data set (hospital|wfdb): leave one out"):
            join(tmp_path / "twice", *parts)
    with pytest.raises(UserError, match="is named twice"):
        join(tmp_path / "twice", joined, joined.parent / "in" / ".." / "joined")
    assert not (tmp_path / "twice").exists()


def test_equal_signals_of_two_patients_of_two_parts_are_told(sets, tmp_path):
    """One recording under two sources' names: patients cannot be compared, signals can."""
    write_folder(tmp_path / "in", 30, 1)
    build(tmp_path / "in", tmp_path / "again", "source.name=again")
    outcome = join(tmp_path / "out", sets / "wide", tmp_path / "again")
    line = "60 records of 60 patients hold a signal that another patient has too"
    assert any(said.startswith(line) for said in outcome.remarks)
    assert any(
        "a patient who is in two sources (again, wfdb) counts as two patients" in said for said in outcome.remarks
    )
    assert summary(tmp_path / "out")["equal_signals"] == {"records": 60, "windows": 60, "patients": 60}


def test_parts_without_private_tables(sets, joined, tmp_path):
    for part in ("site", "wide"):
        shutil.copytree(sets / part, tmp_path / part, ignore=shutil.ignore_patterns("private"))
    outcome = join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")
    assert any("came without private/" in line for line in outcome.remarks)
    assert verify(tmp_path / "out")
    mine, whole = read_manifest(tmp_path / "out"), read_manifest(joined)
    assert {w["bytes"]: (w["split"], facts(w)) for w in windows(tmp_path / "out")} == {
        w["bytes"]: (w["split"], facts(w)) for w in windows(joined)
    }
    assert mine.lead_mean_mv == pytest.approx(whole.lead_mean_mv, rel=1e-12)
    assert mine.lead_std_mv == pytest.approx(whole.lead_std_mv, rel=1e-12)


def test_parts_of_different_keys_need_a_word(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", 12)
    build(tmp_path / "in", tmp_path / "open")
    monkeypatch.setenv("UMBRA_KEY", "a secret of more than sixteen")
    build(tmp_path / "in", tmp_path / "closed")
    with pytest.raises(
        UserError,
        match=r"open \(source.name=wfdb, key public\) and .*closed \(source.name=wfdb, key [0-9a-f]{12}\) were built",
    ):
        join(tmp_path / "out", tmp_path / "open", tmp_path / "closed")
    assert not (tmp_path / "out").exists()
    join(tmp_path / "out", tmp_path / "open", tmp_path / "closed", distinct_patients=True)
    manifest = verify(tmp_path / "out")
    assert manifest.key_id == "+".join(sorted(["public", read_manifest(tmp_path / "closed").key_id]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rate=200"], "a has 100 Hz, b 200 Hz: build b again, from its recordings, with rate=100"),
        (["seconds=5"], "a has 1000 samples a window, b 500 samples a window: build b again, .* with seconds=10"),
        (["leads=[I,II,V1]"], r"a has \['I', .*\], b \['I', 'II', 'V1'\]: build b again, .* with leads=\[I,II,III,"),
        (["resolution_uv=5"], "a has 1 µV a step, b 5 µV a step: build b again, .* with resolution_uv=1"),
    ],
)
def test_parts_that_are_unlike(tmp_path, words, message):
    write_folder(tmp_path / "in", 8)
    build(tmp_path / "in", tmp_path / "a")
    build(tmp_path / "in", tmp_path / "b", *words)
    with pytest.raises(UserError, match=message):
        join(tmp_path / "out", tmp_path / "a", tmp_path / "b")


def test_labels_of_two_types(sets, tmp_path):
    """Whole numbers and numbers become numbers; numbers and words cannot be one column."""
    (tmp_path / "in").mkdir()
    hospital(tmp_path / "in")
    table = (tmp_path / "in" / "table.csv").read_text().splitlines()
    for name, value in (("numbers", "0.5"), ("words", "LMI")):
        lines = [table[0], *(line.rpartition(",")[0] + f",{value}" for line in table[1:])]
        (tmp_path / "in" / "table.csv").write_text("\n".join(lines) + "\n")
        build(tmp_path / "in", tmp_path / name, *TABLE, "source.name=other", "labels=[site]")
    join(tmp_path / "out", sets / "site", tmp_path / "numbers")
    site = pq.read_table(tmp_path / "out" / "samples.parquet").column("site").to_pylist()
    assert Counter(site) == {0.5: 24, 0.0: 8, 1.0: 8, 2.0: 8}
    with pytest.raises(UserError, match="label site is int64 in site and string in words: build one of them"):
        join(tmp_path / "no", sets / "site", tmp_path / "words")


def test_damaged_parts_are_named(sets, tmp_path):
    for part in ("site", "wide"):
        shutil.copytree(sets / part, tmp_path / part)
    shard = tmp_path / "wide" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[30_000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"1 shard failed: .*wide/train-000001.tar does not have the sha256"):
        join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert "1 failed" in progress.status(tmp_path / "out")
    for read in (verify, report, lambda path: join(tmp_path / "more", path, sets / "site")):
        with pytest.raises(UserError, match="not a finished data set; run `python -m sharding join` to completion"):
            read(tmp_path / "out")
    shutil.copy(sets / "wide" / shard.name, shard)
    join(tmp_path / "out", tmp_path / "site", tmp_path / "wide")
    assert verify(tmp_path / "out")
    (tmp_path / "wide" / "samples.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"wide/samples.parquet is damaged"):
        join(tmp_path / "new", tmp_path / "site", tmp_path / "wide")
    manifest = tmp_path / "site" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples": 7', '"samples": 6'))
    with pytest.raises(UserError, match=r"site/manifest.json does not match its own fingerprint"):
        join(tmp_path / "new", tmp_path / "site", tmp_path / "wide")


def test_verify_finds_what_was_changed(joined, tmp_path):
    shutil.copytree(joined, tmp_path / "out")
    path = tmp_path / "out" / "private" / "records.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(UserError, match=r"records.parquet does not have the sha256"):
        verify(tmp_path / "out")


def test_the_command_line(sets, joined, tmp_path, capsys, monkeypatch):
    from sharding.__main__ import main
    from umbra.config import command

    parts = [str(sets / "site"), str(sets / "wide")]
    main(["join", *parts, f"output={tmp_path / 'out'}", "--dry-run"])
    said = capsys.readouterr().out
    assert "would write" in said
    assert "90 windows" in said
    assert "site: 24 windows (12 train, 8 val, 4 test)" in said
    assert "label grade is empty for the samples of wide, which have none" in said
    assert not (tmp_path / "out").exists()
    main(["join", *parts, f"output={tmp_path / 'out'}", "workers=2"])
    assert "90 windows of 46 patients in" in capsys.readouterr().out
    assert public_bytes(tmp_path / "out") == public_bytes(joined)
    main(["join", *parts, f"output={tmp_path / 'out'}"])
    assert "already joined from these parts: nothing to do" in capsys.readouterr().out
    main(["status", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "complete" in said
    assert "samples  90 of 90 done" in said
    main(["verify", str(tmp_path / "out")])
    assert "90 samples" in capsys.readouterr().out
    for words, message in (
        ([*parts], "usage: python -m sharding join PART PART"),
        ([parts[0], f"output={tmp_path / 'x'}"], "two parts at least"),
        ([*parts, f"output={parts[0]}"], "is one of the parts"),
        ([*parts, f"output={parts[0]}/deep/x"], "/deep/x lies inside the part"),
        ([*parts, f"output={sets}"], "holds the part"),
        ([*parts[::-1], f"output={tmp_path / 'out'}"], "was joined from other parts, or in another order"),
        (
            [parts[0], "https://host/set", f"output={tmp_path / 'x'}"],
            "part https://host/set is no folder: name folders",
        ),
        ([parts[0], str(sets / "two"), f"output={tmp_path / 'x'}"], "is not a finished data set"),
        ([parts[0], str(joined), f"output={sets / 'wide'}"], "hold the same data set"),
        ([*parts, f"output={tmp_path / 'x'}", "worker=2"], "did you mean 'workers'"),
        ([*parts, f"output={tmp_path / 'x'}", "workers=0"], "workers=0 must be"),
    ):
        monkeypatch.setattr(sys, "argv", ["sharding", "join", *words])
        with pytest.raises(SystemExit) as stop:
            command(main)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.count("\n") == 1
        assert message in error
    with pytest.raises(UserError, match="was joined and has no one input"):
        report(tmp_path / "out", sets / "two")
    with pytest.raises(UserError, match="holds a joined data set"):
        build(sets / "two", tmp_path / "out")
    build(sets / "two", tmp_path / "built")
    with pytest.raises(UserError, match="was built, not joined"):
        join(tmp_path / "built", *map(Path, parts))


def test_sets_of_other_versions(tmp_path):
    """Smaller places for the metadata, no column of leads, no hash of the table, no private/, no name."""
    old = make_shards(tmp_path / "old", {s: ["SR", "AFIB", "STACH"] * 4 for s in SPLITS}, shards_of_train=3)
    table = pq.read_table(old / "samples.parquet")
    with pq.ParquetWriter(old / "samples.parquet", table.schema) as writer:  # a row group a shard, as builds have it
        for number in range(len(read_manifest(old).shards)):
            writer.write_table(table.filter(pc.equal(table.column("shard"), number)))
    write_folder(tmp_path / "in", 6)
    build(tmp_path / "in", tmp_path / "new", "seconds=2.56")
    join(tmp_path / "out", old, tmp_path / "new")
    found, known = windows(tmp_path / "out"), windows(old)
    assert read_manifest(tmp_path / "out").meta_bytes == 512
    assert len(found) == 36 + 18
    of_old = {w["bytes"]: (w["split"], w["row"]["patient"], w["row"]["codes"]) for w in known}
    assert {w["bytes"]: (w["split"], w["row"]["patient"], w["row"]["codes"]) for w in found if not w["meta"]} == of_old
    assert all(w["row"]["leads"] == list(LEADS) for w in found)
    train = np.stack([w["x"] for w in found if w["split"] == "train"]).astype(float) / 1000
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lead_mean_mv == pytest.approx(train.mean(axis=(0, 2)).tolist(), abs=1e-12)
    assert manifest.lead_std_mv == pytest.approx(train.std(axis=(0, 2)).tolist(), rel=1e-9)
    assert Shards(tmp_path / "out", "train").count == len(train)


def test_parts_that_were_treated_differently_are_told(sets, tmp_path):
    write_folder(tmp_path / "in", 8)
    build(tmp_path / "in", tmp_path / "flat", "source.name=flat", "high_pass=0.5")
    outcome = join(tmp_path / "out", sets / "wide", tmp_path / "flat")
    assert "parts were built with different high_pass: 0.5 (flat), 0 (wfdb)" in outcome.remarks
    assert "parts were built with different min_seconds: 0 (flat), 5 (wfdb)" in outcome.remarks


def test_nothing_of_the_parts_paths_leaves_private(sets, joined):
    seen = b"".join(public_bytes(joined).values())
    for word in (str(sets), "joined", "h0", "r0001", "pat1"):
        assert word.encode() not in seen
