"""What has changed between two configs, and which changes are free."""

import pytest

from umbra import resume


def keys(kind: str, old: dict, new: dict) -> list[str]:
    return [change.key for change in resume.changes(kind, old, new)]


@pytest.mark.parametrize("kind", resume.FREE)
def test_the_same_config_has_not_changed(kind):
    config = {"a": {"b": 1, "empty": {}}, "c": [1, {"d": 2}], "parts": {"x": "y"}}
    assert keys(kind, config, {**config}) == []


def test_an_empty_section_says_nothing_beside_the_key_that_fills_it():
    found = resume.changes("run", {"encoder": {"args": {}}}, {"encoder": {"args": {"width": 8}}})
    assert found == [resume.Change("encoder.args.width", resume.UNSET, 8)]


def test_a_default_that_is_empty_is_filled_by_a_plan():
    """As a build compares: the defaults, over them the plan's, with the config of now."""
    now = {"source": {"parts": {"WFDB_Ga": "georgia"}}}
    before = resume.flat({"source": {"parts": {}}, "seed": 0}) | resume.flat({**now, "seed": 0})
    assert keys("build", before, resume.flat({**now, "seed": 0})) == []


@pytest.mark.parametrize(
    ("kind", "key", "free"),
    [
        ("study", "data", True), ("study", "name", True), ("study", "folds", False), ("study", "shard.config", False),
        ("run", "method", True), ("run", "data.path", True), ("run", "precision", False), ("build", "input", True),
        ("build", "seed", False),
    ],
)  # fmt: skip
def test_places_and_titles_are_free(kind, key, free):
    assert resume.is_free(kind, key) is free
    assert bool(resume.changes(kind, {key: "a"}, {key: "b"})) is not free


def test_free_keys_and_sections_may_change_and_their_near_names_may_not():
    old = {"steps": 1, "log": {"every": 1}, "data": {"path": "a", "lanes": 1}, "steps_more": 1}
    new = {"steps": 2, "log": {"every": 2}, "data": {"path": "b", "lanes": 2}, "steps_more": 2}
    assert keys("run", old, new) == ["data.lanes", "steps_more"]
