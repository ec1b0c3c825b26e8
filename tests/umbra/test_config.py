import importlib
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from umbra.config import check_fields, command, dump, load, setting
from umbra.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass
class Inner:
    global_: int = 4
    free: dict[str, int] = field(default_factory=dict)


@dataclass
class Outer:
    name: str = "a"
    batch: Inner = field(default_factory=Inner)
    views: list[str] = field(default_factory=list)


def test_defaults_then_file_then_words(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: b\nbatch: {global: 5, free: {x: 1}}\n")
    config = load(Outer, path, ["batch.global=6", "views=[p, q]"])
    assert config == Outer("b", Inner(6, {"x": 1}), ["p", "q"])


def test_what_is_dumped_is_read_back(tmp_path):
    config = Outer("c", Inner(9, {"y": 2}), ["v"])
    (tmp_path / "d.yaml").write_text(dump(config))
    assert "global: 9" in dump(config)
    assert load(Outer, tmp_path / "d.yaml") == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch.globl=1"], "unknown key 'batch.globl'; did you mean 'batch.global'?"),
        (["nam=1"], "did you mean 'name'?"),
        (["global=1"], "did you mean 'batch.global'?"),
        (["batch.global=many"], "key 'batch.global'"),
        (["batch=3"], "'batch' is a section: give batch.global=... or batch.free=..."),
        (["batch="], "'batch' is a section"),
        (["views=['${']"], "not valid YAML"),
        (["alone"], "not of the form key=value"),
        (["views=[a"], "not valid YAML"),
        (["views=a"], "key 'views': this is a list: write views=[A,B], or [] for none"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest_right_one(words, said):
    with pytest.raises(UserError) as error:
        load(Outer, None, words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n", "name: [\n", "nme: 3\n"])
def test_a_wrong_file_is_named(tmp_path, text):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"wrong\.yaml"):
        load(Outer, path)


@dataclass
class Must:
    output: str = MISSING


def test_a_key_that_must_be_given_is_named():
    with pytest.raises(UserError, match="output is not set"):
        load(Must, None, [])


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "right.yaml").write_text("")
    with pytest.raises(UserError, match=r"right\.yaml"):
        load(Outer, tmp_path / "rigth.yaml")


@pytest.mark.parametrize(
    "text", ["${HOME}/x", "${", r"a\${b}", "2024_01_02", "1e3", "007", "null", "yes", "'", "#a", "a: b"]
)
def test_a_text_is_taken_as_it_stands(text, tmp_path):
    assert load(Outer, None, [f"name={text}"]).name == text
    assert load(Outer, None, [f'name="{text}"']).name == text


def test_a_file_is_taken_literally_too(tmp_path):
    config = Outer("${HOME}/x", views=[r"a\${b}"])
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(Outer, tmp_path / "c.yaml") == config


def test_a_section_may_not_be_a_single_value_in_a_file_either(tmp_path):
    (tmp_path / "c.yaml").write_text("batch: 3\n")
    with pytest.raises(UserError, match=r"c\.yaml: 'batch' is a section: give batch\.global=\.\.\. or batch\.free"):
        load(Outer, tmp_path / "c.yaml")


@dataclass
class Free:
    free: dict[str, str] = field(default_factory=dict)
    views: list[str] = field(default_factory=list)


@pytest.mark.parametrize("word", ["free=[a,b]", "views={a: b}"])
def test_a_list_for_keys_and_keys_for_a_list_are_refused(word):
    with pytest.raises(UserError, match="on the command line: a list where a mapping is needed, or the"):
        load(Free, None, [word])


@dataclass
class Bounded:
    global_: int = setting(1, ">= 1")


@dataclass
class Numbers:
    share: float = setting(0.5, "> 0 and < 1")
    batch: Bounded = field(default_factory=Bounded)
    rates: list[float] = setting([0.1], "> 0")
    kind: str = setting("a", choices=("a", "b"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Numbers(share=1.0), "p.share=1.0 must be > 0 and < 1"),
        (Numbers(share=0.0), "p.share=0.0 must be > 0 and < 1"),
        (Numbers(share=math.nan), "p.share=nan must be a finite number"),
        (Numbers(batch=Bounded(0)), "p.batch.global=0 must be >= 1"),
        (Numbers(rates=[1.0, math.inf]), "p.rates=inf must be a finite number"),
        (Numbers(rates=[1.0, -1.0]), "p.rates=-1.0 must be > 0"),
        (Numbers(kind="c"), "p.kind=c is unknown; use a, b"),
    ],
)
def test_a_number_out_of_its_range_is_named(config, said):
    check_fields(Numbers(batch=Bounded(10**300)))
    with pytest.raises(UserError) as error:
        check_fields(config, "p.")
    assert str(error.value) == said


USAGES = {
    "trainer.pretrain": "deepspeed trainer/pretrain.py CONFIG.yaml data.path=DIR run=DIR key=value",
    "trainer.export": "python -m trainer.export run=RUN_DIR",
    "trainer.transfer": "python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR",
    "trainer.study": "python -m trainer.study configs/study/",
    "sharding": "build CONFIG.yaml key=value",
}


@pytest.mark.parametrize("module", USAGES)
@pytest.mark.parametrize("words", [["--help"], ["x.yaml", "a=b", "-h"]])
def test_help_says_how_a_part_is_called(module, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *words])
    entry = importlib.import_module(f"{module}.__main__" if module in ("sharding", "trainer.study") else module)
    with pytest.raises(SystemExit) as ended:
        command(entry.main)
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert USAGES[module] in said.out
    assert said.err == ""


def test_help_of_a_real_call():
    words = [sys.executable, "-m", "trainer.export", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert USAGES["trainer.export"] in done.stdout


def test_of_many_processes_one_speaks(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])

    def wrong(words):
        raise UserError("what, where, how")

    for quiet, said in ((False, "error: what, where, how\n"), (True, "")):
        with pytest.raises(SystemExit) as ended:
            command(wrong, quiet)
        assert ended.value.code == 2
        assert capsys.readouterr().err == said


def test_a_default_that_is_a_list_belongs_to_one_config_alone():
    first, second = Numbers(), Numbers()
    first.rates.append(2.0)
    assert second.rates == [0.1]
