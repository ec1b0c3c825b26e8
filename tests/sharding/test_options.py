"""The keys of a build: their ranges, what a wrong one says, and the registry of formats."""

import importlib
import sys
import typing

import pytest

from sharding.__main__ import main
from sharding.options import BuildConfig
from sharding.sources import protocol
from tests.support.ranges import ranged
from umbra.config import command, load
from umbra.errors import UserError
from umbra.layers import keys
from umbra.reference import reference

MISTAKES = [
    (["rate=49"], "rate=49.0 must be >= 50 and <= 20000"),
    (["rate=nan"], "rate=nan must be a finite number"),
    (["seconds=0"], "seconds=0.0 must be > 0 and < 1000000"),
    (["seconds=.inf"], "seconds=inf must be a finite number"),
    (["seconds=0.015"], "seconds=0.015 times rate=100 must be a whole number of samples"),
    (["seconds=900000"], "must be a whole number of samples, at most 16777216"),
    (["min_seconds=-1"], "min_seconds=-1.0 must be >= 0"),
    (["min_seconds=11"], "min_seconds=11 must be between 0 and 10"),
    (["min_seconds=.nan"], "min_seconds=nan must be a finite number"),
    (["high_pass=-1"], "high_pass=-1.0 must be >= 0"),
    (["high_pass=26"], "high_pass=26 must be between 0 and 25"),
    (["seed=-5"], "seed=-5 must be >= 0 and < 1e18"),
    (["seed=99999999999999999999999999"], "seed=99999999999999999999999999 must be >= 0 and < 1e18"),
    (["task=-1"], "task=-1 must be >= 0"),
    (["task=1"], "task=1 must be between 0 and tasks-1=0"),
    (["missing_leads=zeros"], "missing_leads=zeros is unknown; use refuse, zero"),
    (["split.train=-0.1"], "must be fractions that add up to at most 1"),
    (["split.val=.nan"], "must be fractions that add up to at most 1"),
    (["source.table.low_rate=.nan"], "source.table.low_rate=nan must be a finite number"),
    (["source.array.rate=-3"], "source.array.rate=-3.0 must be >= 0 and <= 20000"),
    (["source.array.rate=500"], "source.array.rate has no effect with source.format=wfdb: leave it out"),
    (["source.array.units=furlong"], "source.array.units has no effect with source.format=wfdb: leave it out"),
    (["source.array.leads=[I]", "source.format=clinical"], "source.array.leads has no effect with source.format=clini"),
    (["source.array.ids=a", "source.format=table"], "source.array.ids has no effect with source.format=table"),
    (["source.array.meta=a", "source.format=table"], "source.array.meta has no effect with source.format=table"),
    (["source.array.ids=a", "source.format=tars"], "source.array.ids has no effect with source.format=tars"),
    (["source.array.meta=a", "source.format=hdf5"], "source.array.meta has no effect with source.format=hdf5"),
    (["source.array.rate=30", "source.format=table"], "source.array.rate=30 must be between 50 and 20000 Hz"),
    (["source.array.rate=100", "source.array.units=furlong", "source.format=table"], "units=furlong is neither mV, uV"),
    (["source.format=wdfb"], "source.format=wdfb is unknown; did you mean 'wfdb'?"),
    (["source.format=xml"], "source.format=xml is unknown; known: wfdb, hdf5, table, tars, clinical"),
    (["source.parts=[a]"], "key 'source.parts': this is a mapping: write source.parts={A: B}, or {} for none"),
    (["output=INPUT"], "holds other files: choose another output"),
    (["--dryrun"], "unknown option --dryrun; did you mean '--dry-run'?"),
    (["seed=010"], "key 'seed': write 10, not 010 ('010' in quotes if it is text)"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
def test_a_mistake_ends_in_one_line_and_exit_code_2(words, said, dry, tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.hea").write_text("a 1 500 10\n")
    words = [word.replace("INPUT", str(source)) for word in words]
    given = [f"input={source}", f"output={tmp_path / 'out'}", "source.public=true", *words, *dry]
    monkeypatch.setattr(sys, "argv", ["sharding", "build", *given])
    with pytest.raises(SystemExit) as stop:
        command(main)
    output, error = capsys.readouterr()
    assert (stop.value.code, output) == (2, "")
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_number_of_the_config_has_a_range_and_the_reference_shows_it():
    numbers = {key for key, kind in keys(BuildConfig) if kind in (int, float, typing.Any)}
    assert numbers == ranged(BuildConfig) | {"split.train", "split.val", "split.test"}
    rows = {
        cells[1].strip(" `"): cells[4] for line in reference("shard").splitlines() if (cells := line.split("|"))[1:]
    }
    for key in [*numbers, "missing_leads", "source.format", "source.array.units"]:
        assert rows[key].strip(), key


@pytest.mark.parametrize("name", protocol.FORMATS)
def test_every_format_is_a_module_with_the_functions_and_endings_of_a_source(name):
    module = protocol.module(name)
    assert module is importlib.import_module(protocol.FORMATS[name])
    assert all(callable(getattr(module, part)) for part in ("check", "find", "head", "read"))
    assert module.ENDINGS
    assert all(ending.startswith(".") and ending == ending.lower() for ending in module.ENDINGS)


def test_a_format_is_a_module_anywhere(monkeypatch):
    monkeypatch.setitem(protocol.FORMATS, "mine", "json")
    assert protocol.module("mine") is importlib.import_module("json")
    with pytest.raises(UserError, match="did you mean 'mine'"):
        protocol.module("mime")


def test_the_keys_that_a_format_uses_pass():
    array = "source.array={rate: 100, leads: [I], units: uV, leads_last: true, trim: true, signals: a}"
    for name, more in (("hdf5", ["source.array.ids=a"]), ("tars", ["source.array.meta=m"]), ("table", [])):
        load(BuildConfig, None, [f"source.format={name}", array, *more]).check()
