"""2,000 mutated WFDB headers and signal files: each ends as kept or with a counted reason, whatever is in it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sharding.options import REASONS
from sharding.sources import wfdb
from sharding.sources.protocol import Rejected
from tests.support import wfdb_files
from tests.support.recordings import LEADS, beats, write_record

WORDS = [
    "0", "-1", "1e9", "999999999999999999", "99999999999999999999999", "1e400", "nan", "-200", "200(999999999999)/mV",
    "(0)/mV", "1000.0(0)/V", "/uV", "x", "16x999999999", "212", "310", "311", "508", "0x10", "16+99999999999999",
    "16:5", "../outside/secret.dat", "/etc/passwd", "..", ".", "~", "a/b.dat", "\\\\host\\x", "C:secret.dat", "\0",
    "é", "🙂", "1_000", "٣", "--", "+", "(", "[", "%s", "10:00:00", "01/01/1900", "1/1", "12/3", "1000000000/5(1)",
]  # fmt: skip

DRIVER = """
import json, os, resource, sys
opened = []
def look(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        opened.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(look)
from umbra.config import load
from sharding.options import BuildConfig
from sharding.build import build
outcome = build(load(BuildConfig, None, sys.argv[1:]))
outside = sorted({path for path in opened if "/outside/" in path or path.startswith("/etc/passwd")})
print(json.dumps({"kept": outcome.kept, "rejected": outcome.rejected, "outside": outside,
                  "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def mutate_header(text: str, dice: random.Random) -> bytes:
    """One to three changes: a word, a line, some bytes, or the whole."""
    data = text.encode()
    for _ in range(dice.randint(1, 3)):
        lines = data.split(b"\n")
        kind = dice.randrange(8)
        if kind <= 2:  # a word becomes one of the words above
            at = dice.randrange(len(lines))
            words = lines[at].split(b" ")
            words[dice.randrange(len(words))] = dice.choice(WORDS).encode()
            lines[at] = b" ".join(words)
            data = b"\n".join(lines)
        elif kind == 3:  # lines are lost, doubled or change places
            data = b"\n".join(dice.choice([lines[:-1], [*lines, lines[0]], dice.sample(lines, len(lines))]))
        elif kind == 4:  # cut
            data = data[: dice.randrange(len(data) + 1)]
        elif kind == 5:  # random bytes
            at = dice.randrange(len(data) + 1)
            data = data[:at] + dice.randbytes(dice.randint(1, 40)) + data[at + dice.randint(0, 10) :]
        elif kind == 6:  # segments, in a circle
            data = b"f0001/2 12 100 2000\nf0001 1000\nf0002 1000\n" if dice.random() < 0.3 else data
        else:  # very long
            data += b"# " + b"x" * dice.choice([10, 10_000, 1_100_000]) if dice.random() < 0.1 else b""
        data = data or b"\n"
    return data


def mutate_signal(path: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    kind = dice.randrange(6)
    if kind == 0:
        path.write_bytes(data[: dice.randrange(len(data))])
    elif kind == 1:
        path.write_bytes(dice.randbytes(len(data)))
    elif kind == 2:
        path.write_bytes(b"")
    else:
        path.unlink()
        if kind == 3:
            path.mkdir()
        elif kind == 4:
            os.mkfifo(path)
        else:
            path.symlink_to(dice.choice([path.name, "nowhere.dat"]))


@pytest.mark.full
@pytest.mark.timeout(300)
def test_mutated_records_end_in_a_counted_reason(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.dat").write_bytes(beats(0).tobytes())
    (outside / "secret.hea").write_text("secret 12 100 1000\n")
    dice = random.Random(0)
    digital = beats(1)
    for i in range(2000):
        name = f"f{i:04d}"
        write_record(root, name, digital, comments=("Age: 50", "Sex: Male", "Dx: 426783006"), leads=LEADS)
        if i % 4 < 3:
            path = root / f"{name}.hea"
            path.write_bytes(mutate_header(path.read_text(), dice))
        else:
            mutate_signal(root / f"{name}.dat", dice)
    words = [f"input={root}", f"output={tmp_path / 'out'}", "source.public=true", "samples_per_shard=200"]
    done = subprocess.run([sys.executable, "-c", DRIVER, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rows = pq.read_table(tmp_path / "out" / "private" / "records.parquet").to_pylist()
    assert {row["record"] for row in rows} == {f"f{i:04d}" for i in range(2000)}
    reasons = Counter(row["reason"] for row in rows)
    assert set(reasons) - {None} <= set(REASONS)
    assert len(reasons) > 12, reasons
    assert reasons[None] == found["kept"] > 100
    assert found["outside"] == []
    assert found["mib"] < 1024


def read_whole_and_in_part(root: Path, record: str, dice: random.Random) -> str:
    """Why a record is rejected; nothing if it is not, and any part of it is that part of the whole."""
    try:
        head = wfdb.head(root, record)
        if head.samples * len(head.leads) > 1 << 22:
            return ""
        whole = wfdb.read(root, record, ["I", "II"]).mv
        assert whole.shape == (2, head.samples)
        first = dice.randrange(head.samples)
        last = dice.randint(first + 1, head.samples)
        assert np.array_equal(wfdb.read(root, record, ["I", "II"], span=(first, last)).mv, whole[:, first:last])
    except Rejected as error:
        return error.reason
    return ""


@pytest.mark.full
def test_mutated_segments_frames_and_skews_end_in_a_reason(tmp_path):
    """Of records in several formats; the headers of layout, record and segments change in turn."""
    dice, rng = random.Random(0), np.random.default_rng(0)
    x = rng.integers(-100, 100, (3, 800))
    parts = []
    for form in ("516", "8", "311", "212"):
        signals = x[:, :400].cumsum(axis=1) if form == "8" else x[:, :400]
        wfdb_files.write(tmp_path, f"f_{form}", [(form, signals, (1, 1, 1))], ("I", "II", "V1"), rate=100)
        parts.append(f"f_{form} 400\n")
    lines = "".join(f"~ 0 200/mV 16 0 0 0 0 {lead}\n" for lead in ("I", "II", "V1"))
    (tmp_path / "f_layout.hea").write_text(f"f_layout 3 100 0\n{lines}")
    (tmp_path / "f.hea").write_text("f/6 3 100 1650\nf_layout 0\n~ 50\n" + "".join(parts))
    files = [("516", x[:2], (2, 2)), ("310", x[1:], (2, 2)), ("16", [x[0, :400]], (1,))]
    wfdb_files.write(tmp_path, "g", files, ("I", "II", "V1", "V2", "PLETH"), rate=100, skew=(1, 0, 2))
    headers = sorted(tmp_path.glob("*.hea"))
    reasons: Counter[str] = Counter()
    for _ in range(600):
        path = dice.choice(headers)
        text = path.read_text()
        path.write_bytes(mutate_header(text, dice))
        reasons.update(read_whole_and_in_part(tmp_path, record, dice) for record in ("f", "g"))
        path.write_text(text)
    assert set(reasons) <= {"", *REASONS}
    assert reasons[""] > 300
    assert len(reasons) > 6, reasons
