"""Between a record and its windows: gaps, filters, padding, missing and flat leads, reads that hang."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.signal import butter, filtfilt

from sharding import build as building
from sharding.options import BuildConfig
from sharding.sources import wfdb, wfdb_signals
from sharding.sources.protocol import files_below
from tests.support.recordings import LEADS, arrays, beats, write_folder, write_record
from umbra.config import load
from umbra.errors import UserError
from umbra.leads import canonical
from umbra.schema import read_manifest

GAP = -32768


def build(root: Path, output: Path, *words: str) -> building.Outcome:
    fixed = [f"input={root}", f"output={output}", "source.public=true", "split.train=1", "split.val=0", "split.test=0"]
    return building.build(load(BuildConfig, None, [*fixed, *words]))


def reasons(output: Path) -> list[tuple]:
    table = pq.read_table(output / "private" / "records.parquet").to_pylist()
    return [(row["record"], row["window"], row["reason"]) for row in table]


def test_a_gap_does_not_ring_into_the_window_before_it(tmp_path):
    digital = beats(1, 12000, 500.0) + np.int16(3000)
    whole = tmp_path / "whole"
    write_record(whole, "a", digital, 500.0)
    digital[5001:5101, 3] = GAP
    write_record(tmp_path / "in", "a", digital, 500.0)
    assert build(tmp_path / "in", tmp_path / "out").kept == 1
    build(whole, tmp_path / "out_whole")
    assert reasons(tmp_path / "out") == [("a", 0, None), ("a", 1, "nan")]
    difference = arrays(tmp_path / "out")[0].astype(int) - arrays(tmp_path / "out_whole")[0]
    assert np.abs(difference).max() < 30  # 0.03 mV where the beats beside it are 1 mV high


def test_a_lead_that_changes_by_less_than_one_unit_is_flat(tmp_path):
    digital = beats(1, 7710, 257.0)
    digital[9 * 257 :, 5] = 123
    write_record(tmp_path / "in", "a", digital, 257.0)
    build(tmp_path / "in", tmp_path / "out")
    assert reasons(tmp_path / "out") == [("a", 0, None), ("a", 1, "flat_lead"), ("a", 2, "flat_lead")]


@pytest.mark.parametrize(
    ("words", "most"), [("rate=500", 0), ("rate=250", 1), ("rate=200", 1), ("rate=100 high_pass=0.5", 2)]
)
def test_long_records_are_read_in_pieces(tmp_path, monkeypatch, words, most):
    """The same windows as when it is read at once, but for what filters make of the ends of a piece."""
    bad = beats(3, 60000, 500.0)
    bad[27000, 2], bad[41000:41003, 5] = -32768, 32767  # in windows 5 and 8
    write_record(tmp_path / "in", "holter", bad, rate=500)
    write_record(tmp_path / "in", "short", beats(4, 5000, 500.0), rate=500)
    whole = build(tmp_path / "in", tmp_path / "whole", *words.split())
    reads, reading = [], wfdb_signals._read_file

    def counted(root, record, lines, first, last):
        reads.append((record, last - first))
        return reading(root, record, lines, first, last)

    monkeypatch.setattr(wfdb, "MAX_READ", 12 * 5000 * 10)
    monkeypatch.setattr(wfdb_signals, "_read_file", counted)
    pieces = build(tmp_path / "in", tmp_path / "pieces", *words.split())
    assert [record for record, _ in reads].count("holter") == 6
    assert max(length for _, length in reads) * 12 <= wfdb.MAX_READ
    assert (whole.kept, whole.rejected) == (pieces.kept, pieces.rejected) == (11, {"nan": 1, "saturated": 1})
    tables = [pq.read_table(tmp_path / name / "private/records.parquet") for name in ("whole", "pieces")]
    assert tables[0] == tables[1]
    assert np.abs(arrays(tmp_path / "whole").astype(int) - arrays(tmp_path / "pieces")).max() <= most


def test_short_records_are_refused_or_padded(tmp_path):
    root = tmp_path / "in"
    for name, samples in (("long", 2500), ("seven", 700), ("two", 200)):
        write_record(root, name, beats(len(name), samples))
    build(root, tmp_path / "refused")
    assert sorted(reasons(tmp_path / "refused")) == [
        ("long", 0, None),
        ("long", 1, None),
        ("seven", None, "short"),
        ("two", None, "short"),
    ]
    outcome = build(root, tmp_path / "padded", "min_seconds=5")
    assert outcome.kept == 3
    assert outcome.flags["padded"] == 1
    short = [x for x in arrays(tmp_path / "padded") if not x[:, 700:].any()]
    assert len(short) == 1
    np.testing.assert_array_equal(short[0][:, :700], beats(5, 700).T)


def test_missing_leads_are_refused_or_zero_and_listed(tmp_path):
    root = tmp_path / "in"
    for i, chosen in enumerate((LEADS, ("I", "II", "V2"), ("II",), ("V1", "V2", "V3", "V4", "V5", "V6"))):
        columns = [LEADS.index(lead) for lead in chosen]
        write_record(root, f"r{i}", beats(i)[:, columns], leads=chosen)
    assert build(root, tmp_path / "refused").rejected["missing_lead"] == 3
    assert build(root, tmp_path / "zero", "missing_leads=zero").kept == 4
    samples = pq.read_table(tmp_path / "zero" / "samples.parquet").to_pylist()
    keys = {row["key"]: row["record"] for row in pq.read_table(tmp_path / "zero/private/records.parquet").to_pylist()}
    found = {keys[row["key"]]: row["leads"] for row in samples}
    assert found == {
        "r0": list(LEADS),
        "r1": ["I", "II", "III", "aVR", "aVL", "aVF", "V2"],
        "r2": ["II"],
        "r3": ["V1", "V2", "V3", "V4", "V5", "V6"],
    }
    for row, x in zip(samples, arrays(tmp_path / "zero")):
        there = [lead in row["leads"] for lead in LEADS]
        assert x[there].any(axis=1).all()
        assert not x[np.invert(there)].any()
    with tarfile.open(tmp_path / "zero" / "train-000000.tar") as tar:
        metas = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert [m.get("leads", list(LEADS)) for m in metas] == [row["leads"] for row in samples]
    # the statistics of a lead are those of the records that have it
    only = np.concatenate([x[6] for row, x in zip(samples, arrays(tmp_path / "zero")) if "V1" in row["leads"]])
    assert read_manifest(tmp_path / "zero").lead_std_mv[6] == pytest.approx(only.std() / 1000, rel=1e-6)


def test_high_pass_is_scipys_filter_forwards_and_backwards(tmp_path):
    digital = beats(1, 3000) + np.linspace(0, 4000, 3000).astype(np.int16)[:, None]
    write_record(tmp_path / "in", "a", digital)
    build(tmp_path / "in", tmp_path / "out", "high_pass=0.5")
    b, a = butter(2, 0.5, "highpass", fs=100)
    wanted = filtfilt(b, a, digital.astype(float), axis=0, padlen=600)
    np.testing.assert_allclose(np.concatenate(arrays(tmp_path / "out"), axis=1), wanted.T, atol=1.5)


def test_what_was_lost_is_built_again(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 12)
    build(root, output, "samples_per_shard=5")
    before = {p.name: p.read_bytes() for p in output.glob("*.*")}
    for name in ("train-000001.tar", "samples.parquet"):
        (output / name).unlink()
        assert build(root, output, "samples_per_shard=5").state == "built"
        assert {p.name: p.read_bytes() for p in output.glob("*.*")} == before
    assert build(root, output, "samples_per_shard=5").state == "already built"


def test_a_key_that_came_later_has_its_default(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 3)
    build(root, output)
    path = output / "private" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["content"]["high_pass"]
    path.write_text(json.dumps(plan))
    assert build(root, output).state == "already built"
    with pytest.raises(UserError, match=r"planned with high_pass=0.0, now high_pass=0.5"):
        build(root, output, "high_pass=0.5")


def test_a_file_name_that_is_no_utf8_is_one_rejected_record(tmp_path):
    root = tmp_path / "in"
    write_folder(root, 3)
    (root / b"M\xfcller.hea".decode("utf-8", "surrogateescape")).write_text("x 12 100 1000\n")
    outcome = build(root, tmp_path / "out")
    assert outcome.kept == 3
    assert outcome.rejected["missing_file"] == 1
    assert ("M\\xfcller", None, "missing_file") in [
        (r.replace("\\udcfc", "\\xfc"), w, reason) for r, w, reason in reasons(tmp_path / "out")
    ]


def test_links_to_folders_are_followed_once(tmp_path):
    write_folder(tmp_path / "elsewhere", 2)
    root = tmp_path / "in"
    write_record(root / "a", "x", beats(1))
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root)
    assert files_below(root, "", (".hea",)) == ["a/x.hea", "linked/r0000_0.hea", "linked/r0001_0.hea"]


HANGING = """
import sys, time
from sharding.sources import wfdb
import sharding.build as building
from umbra.config import command, load
from umbra.leads import canonical
from sharding.options import BuildConfig
reading = wfdb.read
def read(root, record, wanted, options):
    if record == "r0003_0":
        time.sleep(60)
    return reading(root, record, wanted, options)
wfdb.read = read
command(lambda words: building.build(load(BuildConfig, None, words)) and 0)
"""


def test_a_record_that_hangs_stops_its_shard_in_time(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 8)
    words = [f"input={root}", f"output={output}", "source.public=true", "samples_per_shard=2"]
    done = subprocess.run(
        [sys.executable, "-c", HANGING, *words, "timeout=1"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2
    assert "error: r0003_0 could not be read in time" in done.stderr
    assert "r0003_0" in building.progress.status(output)
    assert building.build(load(BuildConfig, None, words)).kept == 8
    assert "r0003_0" not in building.progress.status(output)


HANGING_FOLDER = """
import os, time
from sharding.__main__ import main
from umbra.config import command
walk = os.walk
def slow(root, **words):
    for found in walk(root, **words):
        time.sleep(60 if found[0].endswith("stuck") else 0.7)
        yield found
os.walk = slow
command(main)
"""


def test_a_folder_that_hangs_stops_the_planning_in_time(tmp_path):
    for name in ("a", "b", "c"):
        write_record(tmp_path / "in" / name, "r", beats(1))
    words = ["build", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "source.public=true", "timeout=2"]
    script = [sys.executable, "-c", HANGING_FOLDER, *words]
    whole = subprocess.run(script, capture_output=True, text=True, timeout=50)
    assert whole.returncode == 0, whole.stderr  # each folder has its own time, and all together took longer
    write_record(tmp_path / "in" / "stuck", "r", beats(1))
    done = subprocess.run(script, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert "in could not be listed in time" in done.stderr


def test_wrong_values_are_named(tmp_path):
    write_folder(tmp_path / "in", 1)
    for word in ("seconds=.nan", "min_seconds=11", "high_pass=40", "timeout=0", "split.train=.nan"):
        with pytest.raises(UserError, match=word.split("=")[0].split(".")[-1]):
            build(tmp_path / "in", tmp_path / "out", word)
    with pytest.raises(UserError, match="missing_leads=none is unknown; use refuse, zero"):
        build(tmp_path / "in", tmp_path / "out", "missing_leads=none")


FULL_DISK = """
set -u
mount -t tmpfs -o size=1m tmpfs "$1"
shift
"$@"; echo "first $?"
mount -o remount,size=64m "$OUT"
"$@"; echo "second $?"
cd "$OUT" && sha256sum train-*.tar manifest.json
"""


@pytest.mark.full
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    root, output = tmp_path / "in", tmp_path / "full" / "out"
    write_folder(root, 60)
    output.parent.mkdir()
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    words = [f"input={root}", "source.public=true", "samples_per_shard=8", "workers=2"]
    words += ["split.train=1", "split.val=0", "split.test=0"]
    command = [sys.executable, "-m", "sharding", "build", f"output={output}", *words]
    script = FULL_DISK.replace("$OUT", str(output.parent)).replace(f'cd "{output.parent}"', f'cd "{output}"')
    done = subprocess.run(
        [*inside, "bash", "-c", script, "bash", str(output.parent), *command],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "first 2" in done.stdout, done.stderr
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "No space left on device; fix that and run the same command again" in errors[0]
    assert "Traceback" not in done.stderr
    assert "second 0" in done.stdout, done.stderr
    build(root, tmp_path / "fresh", "samples_per_shard=8")
    fresh = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "fresh").iterdir() if p.is_file()}
    found = dict(reversed(line.split()) for line in done.stdout.splitlines() if line.endswith((".tar", ".json")))
    assert found
    assert all(fresh[name] == digest for name, digest in found.items())


def test_a_rate_in_no_simple_ratio_is_a_reason_and_no_endless_filter(tmp_path):
    for name, rate in (("a", 100.0), ("b", 1999.001)):
        write_record(tmp_path / "in", name, beats(1, int(12 * rate), rate), rate, record_line=f"{name} 12 {rate}")
    assert build(tmp_path / "in", tmp_path / "out").rejected == {"rate": 1}


def test_what_is_public_of_a_config_names_nobody(tmp_path):
    write_folder(tmp_path / "in", 4)
    with pytest.raises(UserError, match=r"source\.name=Dr\. Smith must be"):
        build(tmp_path / "in", tmp_path / "out", "source.name='Dr. Smith'")
    (tmp_path / "in" / "t.csv").write_text("record,patient_id\n" + "".join(f"r000{i}_0,pat4711{i}\n" for i in range(4)))
    words = [
        "source.table.file=[t.csv]",
        "split.column=patient_id",
        "split.train=[pat47110,pat47111,pat47112,pat47113]",
    ]
    building.build(load(BuildConfig, None, [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", *words,
                                            "source.public=true", "split.val=[]", "split.test=[]"]))  # fmt: skip
    assert "pat4711" not in (tmp_path / "out" / "manifest.json").read_text()


def test_unnamed_channels_are_no_limb_leads():
    assert [canonical(name) for name in ("ECG1", "EKG 2", "lead 1", "ECG lead II", "ECG V1")] == [
        None, None, "I", "II", "V1",
    ]  # fmt: skip


def test_padding_hides_no_flat_lead_and_stays_out_of_the_statistics(tmp_path):
    digital = {f"r{i}": beats(i, 700) + np.int16(2000) for i in range(4)}
    for name, x in digital.items():
        if name == "r3":
            x[:, 11] = -300
        write_record(tmp_path / "in", name, x)
    assert build(tmp_path / "in", tmp_path / "out", "min_seconds=5").rejected == {"flat_lead": 1}
    kept = np.concatenate([digital[f"r{i}"] for i in range(3)]) / 1000
    manifest = read_manifest(tmp_path / "out")
    np.testing.assert_allclose(manifest.lead_mean_mv, kept.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(manifest.lead_std_mv, kept.std(axis=0), rtol=1e-6)


def test_signals_of_one_file_on_lines_apart_are_refused(tmp_path):
    write_record(tmp_path / "in", "a", beats(1))
    write_record(tmp_path / "in", "b", beats(2))
    path = tmp_path / "in" / "b.hea"
    lines = path.read_text().split("\n")
    lines[2] = lines[2].replace("b.dat", "a.dat")
    path.write_text("\n".join(lines))
    assert build(tmp_path / "in", tmp_path / "out").rejected == {"header": 1}


def test_trouble_that_may_pass_stops_the_planning_and_loses_nothing(tmp_path, monkeypatch):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 4)
    head = wfdb.head

    def broken(root, record, options=None):
        if record == "r0002_0":
            raise OSError(errno.EIO, "Input/output error")
        return head(root, record, options)

    monkeypatch.setattr(wfdb, "head", broken)
    with pytest.raises(UserError, match=r"r0002_0 cannot be read now \(Input/output error\)"):
        build(root, output)
    monkeypatch.undo()
    assert build(root, output).kept == 4


def test_one_task_of_many_notices_a_changed_table(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    write_folder(root, 12)
    (root / "t.csv").write_text("record,sex\n" + "".join(f"r{i:04d}_0,F\n" for i in range(12)))
    words = ["source.table.file=[t.csv]", "samples_per_shard=3", "tasks=2"]
    assert build(root, output, *words, "task=0").state == "waiting"
    (root / "t.csv").write_text("record,sex\n" + "".join(f"r{i:04d}_0,M \n" for i in range(12)))
    with pytest.raises(UserError, match=r"t\.csv has changed"):
        build(root, output, *words, "task=1")
