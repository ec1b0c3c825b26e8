"""A dry run reads a sample of the records and says what the build of the same words then does."""

import re
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from sharding import build as building
from sharding import plan as planning
from sharding import trial
from sharding.options import BuildConfig
from tests.support.recordings import LEADS, beats, write_folder, write_record
from umbra.config import load
from umbra.errors import UserError

CONFIGS = "configs/shard"


def config(source, output, *words, form="wfdb") -> BuildConfig:
    return load(BuildConfig, f"{CONFIGS}/{form}.yaml", [f"input={source}", f"output={output}", *words])


def sampled(text: str) -> dict[str, int]:
    """Windows kept and rejected, by reason and flag, of the sample."""
    tail = text[text.index("records, read as the build reads them:") :]
    found = re.findall(r"(?m)^ +(kept|[\w:, ]+?) +([\d,]+) +[\d.]+ %", tail)
    return {name: int(n.replace(",", "")) for name, n in found}


@pytest.fixture
def arrays(tmp_path):
    """Thirty ECGs in microvolt, half of them with a second of zeros at the end."""
    (tmp_path / "in").mkdir()
    for number in range(30):
        x = beats(number).T.astype("f4")
        if number % 2:
            x[:, -100:] = 0
        np.save(tmp_path / "in" / f"r{number:02d}.npy", x)
    return tmp_path


WORDS = ["source.public=true", "source.array.rate=100", "rate=100"]


def test_a_wrong_unit_is_seen_before_the_build(arrays):
    text = building.dry_run(config(arrays / "in", arrays / "out", *WORDS, "source.array.units=mV", form="table"))
    assert sampled(text) == {"kept": 0, "rejected: units": 30}
    assert "no window passed; source.array.units, or the gain in the headers" in text
    text = building.dry_run(config(arrays / "in", arrays / "out", *WORDS, "source.array.units=0.0001", form="table"))
    assert "is source.array.units right?" in text
    assert not (arrays / "out").exists()


def test_it_finds_what_the_build_finds(arrays):
    cfg = config(arrays / "in", arrays / "out", *WORDS, "source.array.units=uV", form="table")
    text = building.dry_run(cfg)
    outcome = building.build(cfg)
    assert sampled(text) == {"kept": outcome.kept, "kept, still_ends": outcome.flags["still_ends"]}
    assert outcome.flags["still_ends"] == 15
    assert re.search(r"median peak-to-peak amplitude of a lead: [\d.]+ mV \(0.4 to 3 mV is typical\)$", text)


def test_a_sample_is_spread_evenly(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", 30)
    write_record(tmp_path / "in", "flat", np.zeros((1000, 12), "<i2"), leads=LEADS)
    monkeypatch.setattr(trial, "RECORDS", 10)
    text = building.dry_run(config(tmp_path / "in", tmp_path / "out", "source.public=true"))
    assert "in 10 of 31 records" in text
    monkeypatch.setattr(trial, "RECORDS", 100)
    text = building.dry_run(config(tmp_path / "in", tmp_path / "out", "source.public=true"))
    assert sampled(text) == {"kept": 30, "rejected: flat_lead": 1}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ["source.array.leads=[V1]"],
            r"8 missing_lead \(.*\); leads=\[V1\] builds the leads that are there, missing_leads=zero fills",
        ),
        ([], r"8 shape \(.*\); source.array.leads must name the array's leads"),
        (["source.array.leads=[I]", "leads=[I]", "seconds=20"], r"8 short \(.*\); a shorter window, seconds="),
        (["source.array.leads=[I]", "leads=[I]", "source.array.units=V"], r"units.*; source.array.units, or the gain"),
    ],
)
def test_where_nothing_can_be_used_the_line_names_the_key(words, hint, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(8):
        np.save(tmp_path / "in" / f"r{number}.npy", beats(number, leads=1).T.astype("f4"))
    with pytest.raises(UserError, match=hint):
        building.build(config(tmp_path / "in", tmp_path / "out", *WORDS, "source.array.units=uV", *words, form="table"))


@pytest.mark.parametrize(
    ("there", "named"), [(("I",), "I"), (("I", "II", "V2"), "I,II,III,aVR,aVL,aVF,V2"), (("X",), "I,...")]
)
def test_the_leads_that_are_there_are_named_by_build_and_dry_run(there, named, tmp_path):
    for number in range(4):
        write_record(tmp_path / "in", f"r{number}", beats(number, leads=len(there)), leads=there)
    words = config(tmp_path / "in", tmp_path / "out", "source.public=true")
    for call in (building.dry_run, building.build):
        with pytest.raises(UserError, match=re.escape(f"; leads=[{named}] ")):
            call(words)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_worker_that_dies_in_a_dry_run_is_one_line(tmp_path, monkeypatch):
    def dies(*_):
        raise BrokenProcessPool("a process was terminated abruptly")

    write_record(tmp_path / "in", "r0", beats(0))
    monkeypatch.setattr(planning, "draw_up", dies)
    with pytest.raises(UserError, match=r"a worker died .*fewer workers need less memory"):
        building.dry_run(config(tmp_path / "in", tmp_path / "out", "source.public=true"))
