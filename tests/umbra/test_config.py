import importlib
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umbra.config import check_fields, command, dump, given_keys, load, setting, split_words
from umbra.errors import UserError, near_miss
from umbra.layers import TextOrTexts, converts
from umbra.plain_yaml import refuse_surprises
from umbra.reference import _class, keys_of

ROOT = Path(__file__).parents[2]
NEITHER = "is neither a config file (.yaml) nor key=value: no spaces around =, and a value with spaces in quotes"


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


@dataclass
class Placed:
    path: TextOrTexts = ""


@dataclass
class Places:
    data: Placed = field(default_factory=Placed)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["data.path=a: {b}"], "a: {b}"),
        (["data.path='x'"], "x"),
        (["data.path=${x}"], "${x}"),
        (["data.path=123"], "123"),
        (["data.path={a: s3://h/x, b: /y}"], {"a": "s3://h/x", "b": "/y"}),
        (["data.path.a=1", "data.path.b=pipe:cat {}=${x}"], {"a": "1", "b": "pipe:cat {}=${x}"}),
        (["data={path: {a: p}}", "data.path.b=q"], {"a": "p", "b": "q"}),
        (["data.path={a: p, b: q}", "data.path={c: r}"], {"c": "r"}),
        (["data.path.a=p", "data.path={b: q}"], {"b": "q"}),
        (["data.path.a=p", "data.path="], ""),
        (["data.path=", "data.path.a=p"], {"a": "p"}),
        (["data.path=x", "data.path=y"], "y"),
    ],
)
def test_a_text_or_a_mapping_of_texts_is_what_was_written(words, path, tmp_path):
    config = load(Places, None, words)
    assert config.data.path == path
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(Places, tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    "words",
    [
        ["data.path=x", "data.path.b=q"],
        ["data.path.b=q", "data.path=x"],
        ["data.path={b: q}", "data.path=x"],
        ["data.path.b=q", "data={path: x}"],
        ["data.path=x", "data={path: {b: q}}"],
    ],
)
def test_a_text_is_not_dropped_for_one_with_a_name_nor_the_other_way_round(words):
    with pytest.raises(UserError) as error:
        load(Places, None, words)
    said = f"'{words[-1]}' on the command line: it would replace the other data.path: give each a name, data.path.A=..."
    assert str(error.value).startswith(said)


def test_words_replace_the_data_sets_of_a_file_as_a_whole(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {path: x}")
    with pytest.raises(UserError, match="it would replace the other"):
        load(Places, path, ["data.path.b=q"])
    assert load(Places, path, ["data.path={b: q}"]).data.path == {"b": "q"}
    path.write_text("data: {path: {a: p}}")
    for words, wanted in (
        (["data.path.b=q"], {"a": "p", "b": "q"}),
        (["data.path=x"], "x"),
        (["data.path={c: r}"], {"c": "r"}),
    ):
        assert load(Places, path, words).data.path == wanted
    with pytest.raises(UserError, match="it would replace the other"):
        load(Places, path, ["data.path.b=q", "data.path=x"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.path={a: [b]}", "key 'data.path.a': one value is needed, not ['b']"),
        ("data.path={a: }", "key 'data.path.a' has no value"),
        ("data.path={a: yes}", "key 'data.path.a': YAML reads yes"),
        ("data.path=???", "??? is no value"),
        ("data={path: [a]}", "key 'data.path': one value is needed"),
        ("data.path.a.b=x", "key 'data.path.a': one value is needed"),
        ("data.pth.a=x", "unknown key 'data.pth'; did you mean 'data.path'?"),
    ],
)
def test_what_is_neither_a_text_nor_texts_is_named(word, said):
    with pytest.raises(UserError) as error:
        load(Places, None, [word])
    assert said in str(error.value)


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
    with pytest.raises(UserError, match=r"does not exist; did you mean 'right\.yaml'\?"):
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
class Player:
    lr: float = 0.1


@dataclass
class Players:
    encoder: Player = field(default_factory=Player)
    masker: Player = field(default_factory=Player)


@dataclass
class Everything:
    count: int = 0
    share: float = 0.5
    flag: bool = False
    name: str = ""
    optim: Players = field(default_factory=Players)
    args: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    views: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


# word on the command line -> what the line says after it; most are also tried as a file.
SURPRISES = [
    ("parts=[a]", "key 'parts': this is a mapping: write parts={A: B}, or {} for none"),
    ("args=[1]", "key 'args': this is a mapping: write args={A: B}, or {} for none"),
    ("args=7", "key 'args': this is a mapping: write args={A: B}, or {} for none"),
    ("classes=[a]", "key 'classes': this is a mapping: write classes={A: B}, or {} for none"),
    ("classes={a: b}", "key 'classes.a': this is a list: write classes.a=[A,B], or [] for none"),
    ("views={name: vcg}", "key 'views': this is a list: write views=[A,B], or [] for none"),
    ("views=", "key 'views': this is a list: write views=[A,B], or [] for none"),
    ("count=[1]", "key 'count': one value is needed, not [1]"),
    ("count={a: 1}", "key 'count': one value is needed, not {'a': 1}"),
    ("count=null", "key 'count' has no value: give one, or leave the key out"),
    ("count=010", "key 'count': write 10, not 010 ('010' in quotes if it is text)"),
    ("count=08", "key 'count': write 8, not 08 ('08' in quotes if it is text)"),
    ("count=-007", "key 'count': write -7, not -007 ('-007' in quotes if it is text)"),
    ("share=00.5", "key 'share': write 0.5, not 00.5 ('00.5' in quotes if it is text)"),
    ("count=1:30", "key 'count': write 90, not 1:30 ('1:30' in quotes if it is text)"),
    ("share=-1:00:00.5", "key 'share': write -3600.5, not -1:00:00.5 ('-1:00:00.5' in quotes if it is text)"),
    ("seeds=[1, 02]", "key 'seeds': write 2, not 02 ('02' in quotes if it is text)"),
    ("classes={a: [0164]}", "key 'classes.a': write 164, not 0164 ('0164' in quotes if it is text)"),
    ("args={deep: {er: 010}}", "key 'args.deep.er': write 10, not 010 ('010' in quotes if it is text)"),
    ("count=???", "key 'count': ??? is no value: give one, or leave the key out"),
    ("views=['???']", "key 'views': ??? is no value: give one, or leave the key out"),
    ("args={a: '???'}", "key 'args.a': ??? is no value: give one, or leave the key out"),
    ("count=${oc.env:HOME}", "key 'count': ${oc.env:HOME} is not replaced by a value: write the int itself"),
    ("share=${x}", "key 'share': ${x} is not replaced by a value: write the float itself"),
    ("flag=${x}", "key 'flag': ${x} is not replaced by a value: write the bool itself"),
    ("seeds=['${x}']", "key 'seeds': ${x} is not replaced by a value: write the int itself"),
    ("args={null: 1}", "key 'args': the key null is not text: write it in quotes, 'null'"),
    ("args={1: 1}", "key 'args': the key 1 is not text: write it in quotes, '1'"),
    ("parts={no: a}", "key 'parts': the key no is not text: write it in quotes, 'no'"),
    ("args={[a]: 1}", "key 'args': a list or a mapping cannot be a key"),
    ("classes={a:b}", "key 'classes': write a: b, with a space after the colon, not a:b"),
    ("views=[{name:vcg}]", "key 'views': write name: vcg, with a space after the colon, not name:vcg"),
    ("classes={a: [no]}", "key 'classes.a': YAML reads yes, no, on, off, true and false as truth values: write text"),
    ("parts={a: yes}", "key 'parts.a': YAML reads yes, no, on, off, true and false as truth values: write text"),
    ("optim={encoder.lr: 1}", "key 'optim.encoder.lr': nest it, encoder: {lr: ...}"),
]


@pytest.mark.parametrize(("word", "said"), SURPRISES, ids=lambda v: v)
@pytest.mark.parametrize("where", ["word", "file"])
def test_what_yaml_reads_otherwise_or_cannot_be_is_one_line_with_its_key(word, said, where, tmp_path):
    key, _, value = word.partition("=")
    (tmp_path / "c.yaml").write_text(f"{key}: {value}\n")
    given = (None, [word]) if where == "word" else (tmp_path / "c.yaml", [])
    with pytest.raises(UserError) as error:
        load(Everything, *given)
    origin = f"'{word}' on the command line" if where == "word" else str(tmp_path / "c.yaml")
    assert str(error.value).startswith(f"{origin}: {said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.encoder.lr: 0.1\n", "key 'optim.encoder.lr': nest it, optim: {encoder: {lr: ...}}"),
        ("optim.encoder.rl: 0.1\n", "unknown key 'optim.encoder.rl'; did you mean 'optim.encoder.lr'?"),
        ("name: no\n", "key 'name': YAML reads yes, no, on, off, true and false as truth values"),
        ("name: 0012\n", "key 'name': write 12, not 0012 ('0012' in quotes if it is text)"),
        ("1: a\n", "the key 1 is not text: write it in quotes, '1'"),
        ("count: 1\ncount: 2\n", "not valid YAML"),
    ],
)
def test_what_only_a_file_can_say_wrong(text, said, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load(Everything, tmp_path / "c.yaml")
    assert said in str(error.value)
    assert "c.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("count=0", 0), ("count=-0", 0), ("count=10", 10), ("count=1_000", 1000), ("count=0x10", 16),
        ("share=0.5", 0.5), ("share=-0.5", -0.5), ("share=0e0", 0.0), ("share=1e-3", 0.001), ("share=.5", 0.5),
        ("seeds=[0, 0x1F]", [0, 31]), ("views=['010', \"1:30\", a:b, 1:99]", ["010", "1:30", "a:b", "1:99"]),
        ("views=[{t: 12:34x}]", [{"t": "12:34x"}]), ("args={a: null}", {"a": None}), ("args={a.b: 1}", {"a.b": 1}),
        ("classes={A: [426783006, 1.5]}", {"A": ["426783006", "1.5"]}), ("parts={'1': a}", {"1": "a"}),
    ],
)  # fmt: skip
def test_plain_numbers_and_quoted_text_pass(word, value, tmp_path):
    key, _, text = word.partition("=")
    (tmp_path / "c.yaml").write_text(f"{key}: {text}\n")
    assert getattr(load(Everything, None, [word]), key) == value
    assert getattr(load(Everything, tmp_path / "c.yaml"), key) == value


@pytest.mark.parametrize("number", [8, 10, 64, 90, 3600, 777, 12345])
@pytest.mark.parametrize("sign", ["", "-", "+"])
def test_the_number_to_write_is_that_without_zeros_or_that_of_yaml_in_base_60(number, sign):
    """The base-60 reading against PyYAML's own; a leading zero is never octal."""
    for zeros in ("0", "00", "0_0"):
        with pytest.raises(UserError, match=rf"write {re.escape(sign)}{number}, not"):
            refuse_surprises(f"{sign}{zeros}{number}", "k")
    text = f"{sign}{number // 60 + 1}:{number % 60:02d}"
    with pytest.raises(UserError, match=f"write {yaml.safe_load(text)}, not"):
        refuse_surprises(text, "k")


@pytest.mark.parametrize("text", ["08", "010", "1:30", "-00.5", "yes", "null", "1e3", "a: b", "12", "${x}", "x"])
def test_any_text_is_dumped_so_that_it_is_read_back(text, tmp_path):
    config = Everything(name=text, parts={text: text}, classes={text: [text]}, views=[text, {text: text}])
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(Everything, tmp_path / "c.yaml") == config


def test_a_mapping_on_the_command_line_replaces_that_of_the_file_and_an_entry_is_added(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("classes: {A: [a], B: [b]}\nargs: {x: 1}\n")
    assert load(Everything, path).classes == {"A": ["a"], "B": ["b"]}
    assert load(Everything, path, ["classes={B: [c]}"]).classes == {"B": ["c"]}
    assert load(Everything, path, ["classes={}"]).classes == {}
    assert load(Everything, path, ["classes.B=[c]"]).classes == {"A": ["a"], "B": ["c"]}
    assert load(Everything, path, ["classes={}", "classes.C=[c]"]).classes == {"C": ["c"]}
    assert load(Everything, path, ["classes={}"]).args == {"x": 1}


@dataclass
class Nested:
    inner: Everything = field(default_factory=Everything)
    global_: Everything = field(default_factory=Everything)


def test_a_mapping_within_a_section_is_replaced_too(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {args: {x: 1}, count: 3}\nglobal: {args: {x: 1}}\n")
    loaded = load(Nested, path, ["inner={args: {y: 2}}", "global.args={z: 1}"])
    assert (loaded.inner.args, loaded.inner.count, loaded.global_.args) == ({"y": 2}, 3, {"z": 1})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.lr", "optim.encoder.lr"), ("lr", "optim.encoder.lr"), ("optim.masker.rl", "optim.masker.lr"),
        ("shar", "share"), ("optm", "optim"), ("--count", "count"), ("seed", "seeds"),
    ],
)  # fmt: skip
def test_the_hint_is_a_key_that_can_be_set(key, hint):
    with pytest.raises(UserError, match=f"unknown key '{key}'; did you mean '{hint}'"):
        load(Everything, None, [f"{key}=1"])


def test_words_that_stand_elsewhere_are_said_so():
    with pytest.raises(UserError, match=r"^'shar=1' of pretrain: unknown key 'shar'; did you mean 'share'\?"):
        load(Everything, None, ["shar=1"], "of pretrain")
    assert given_keys(Everything, ["optim={encoder: {lr: 1}}", "args.a=1"], "") >= {"optim.encoder.lr", "args.a"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["c.yaml", "--dryrun"], "unknown option --dryrun; did you mean '--dry-run'?"),
        (["--hlep"], "unknown option --hlep; did you mean '--help'?"),
        (["-x"], "unknown option -x; known: --dry-run, --help, and KEY=VALUE without dashes"),
        (["a.yaml", "b.yaml"], "one config file at a time, not a.yaml, b.yaml"),
        (["a.yaml", "rate", "=", "3"], f"'rate' {NEITHER}"),
    ],
)
def test_an_unknown_option_is_no_config_file(words, said):
    with pytest.raises(UserError) as error:
        split_words(words, ["--dry-run"])
    assert str(error.value) == said
    assert split_words(["--dry-run", "c.yaml", "a=-1"], ["--dry-run"]) == ("c.yaml", ["a=-1"])
    with pytest.raises(UserError, match="unknown option --dryrun"):
        load(Everything, None, ["--dryrun"])


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("abcd", ["abce", "xyz"], "; did you mean 'abce'?"),
        ("q", ["abce", "xyz"], "; known: abce, xyz"),
        (3, [], "; known: none"),
        ("q", [f"name{i}" for i in range(23)], "name19 and 3 more"),
    ],
)
def test_one_near_miss_helper(word, known, said):
    assert near_miss(word, known).endswith(said)


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


HELPED = {
    "trainer.pretrain": {"": "optim.encoder.lr=0.001   (>= 0)\n      Peak learning rate."},
    "trainer.export": {"": "step=last\n      The step of a committed checkpoint"},
    "trainer.transfer": {
        "": "  fraction=1.0   (> 0 and <= 1)\n",
        "compare": "  bootstrap=2000   (>= 2 and <= 1000000)\n",
    },
    "trainer.study": {"": "  seeds=[0]   (>= 0 and < 1e18)\n"},
    "trainer.figures": {"masks": "  by=rhythm\n", "why": "  rotations=[]\n"},
    "trainer.watch": {"": "  every="},
    "sharding": {
        "synth": "  patients=",
        "build": "  source.public=false\n",
        "join": "  workers=1   (>= 1 and <= 1024)",
    },
}


@pytest.mark.parametrize(("module", "part"), [(module, part) for module, parts in HELPED.items() for part in parts])
def test_help_lists_the_keys_of_a_command(module, part, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *filter(None, [part]), "--help"])
    entry = importlib.import_module(f"{module}.__main__" if module in ("sharding", "trainer.study") else module)
    assert entry.CONFIGS.keys() == HELPED[module].keys()
    with pytest.raises(SystemExit):
        command(entry.main)
    said = capsys.readouterr().out
    assert HELPED[module][part] in said
    for key in keys_of(_class(entry.CONFIGS[part])()):
        assert f"\n  {key.name}=" in said
        assert key.meaning, key.name


def test_help_of_a_real_call():
    words = [sys.executable, "-m", "trainer.export", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert USAGES["trainer.export"] in done.stdout


def test_of_many_processes_one_speaks(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])

    def wrong(words):
        raise UserError("what, where, how")

    said_when_waiting = []
    monkeypatch.setattr("umbra.config.time.sleep", lambda _: said_when_waiting.append(capsys.readouterr().err))
    for quiet, before in ((False, []), (True, [""])):
        with pytest.raises(SystemExit) as ended:
            command(wrong, quiet)
        assert ended.value.code == 2
        assert capsys.readouterr().err == "error: what, where, how\n"
        assert said_when_waiting == before


def test_a_default_that_is_a_list_belongs_to_one_config_alone():
    first, second = Numbers(), Numbers()
    first.rates.append(2.0)
    assert second.rates == [0.1]


@pytest.mark.parametrize("words", [["pretrain"], ["--help"]])
def test_a_reader_that_has_left_is_no_traceback(words):
    """As with `| head`, once it has what it wants."""
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "umbra.config", *words]
    done = subprocess.run(call, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_not_taken_for_it(monkeypatch):
    def main(words):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(BrokenPipeError):
        command(main)


def test_the_backend_of_a_notebook_elsewhere_stops_no_command():
    """Jupyter gives its own to the programs that it starts."""
    env = {**os.environ, "MPLBACKEND": "module://notebook_that_is_elsewhere.inline"}
    code = "import os, sharding, matplotlib; print(os.environ.get('MPLBACKEND'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "None\n", done.stderr
    env["MPLBACKEND"] = "module://matplotlib.backends.backend_svg"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "module://matplotlib.backends.backend_svg\n", done.stderr


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, v) for v in ("7", " 7 ", "1_000", "7.0", "1e3", 7.0, True, "x", "")]
    + [(float, v) for v in ("7", "1e3", "inf", "1e", True, 7, "x", "")]
    + [(bool, v) for v in ("true", "TRUE", "off", "Y", "0", "7", "maybe", "", 1, 1.0, "1.0")],
)
def test_a_value_is_said_not_to_convert_where_the_loader_below_would_refuse_it(kind, value):
    schema = make_dataclass("Schema", [("key", kind, kind(0))])
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {"key": value})
        taken = True
    except OmegaConfBaseException:
        taken = False
    assert converts(value, kind) is taken


@dataclass
class Compiled:
    compile: str = setting("auto", choices=("auto", "true", "false"))
    name: str = "x"


@dataclass
class WithWords:
    run: Compiled = field(default_factory=Compiled)


@pytest.mark.parametrize(
    ("text", "value"), [("true", "true"), ("False", "false"), ("'true'", "true"), ("auto", "auto")]
)
def test_truth_values_are_words_where_these_are_choices(tmp_path, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"run:\n  compile: {text}\n")
    assert load(WithWords, path).run.compile == value
    assert load(WithWords, None, [f"run.compile={text}"]).run.compile == value


def test_truth_values_are_refused_as_other_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("run:\n  name: true\n")
    with pytest.raises(UserError, match="write text in quotes"):
        load(WithWords, path)
