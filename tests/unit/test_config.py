from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from sharding.config import UserError, dump, load


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
        (["batch=3"], "batch"),
        (["alone"], "not of the form key=value"),
        (["views=[a"], "not valid YAML"),
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
