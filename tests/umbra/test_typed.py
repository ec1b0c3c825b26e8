import json
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbra.typed import typed


class Base(TypedDict):
    path: str


class Given(Base, total=False):
    exclude: list[tuple[int, list[str]]]


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 0


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    rate: float
    given: Given
    free: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] | None = None


GOOD = {"parts": [{"name": "a"}], "rate": 100, "given": {"path": "p", "exclude": [[3, ["a"]]], "other": None}}


def test_good_content_becomes_what_it_should_be():
    found = typed(Whole, json.loads(json.dumps(GOOD)))
    given = {"path": "p", "exclude": [(3, ["a"])], "other": None}
    assert found == Whole(parts=[Part("a")], rate=100, given=given)
    assert type(found.rate) is int  # as it was: a hash over the content stays


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": None}, r"'parts' must be a list, not None"),
        ({"parts": [{}]}, r"it lacks 'parts\[0\].name'"),
        ({"parts": [{"name": "a", "size": 1.5}]}, r"'parts\[0\].size' must be a whole number, not 1.5"),
        ({"parts": [{"name": "a", "size": True}]}, r"'parts\[0\].size' must be a whole number, not True"),
        ({"parts": [{"name": "a", "kind": 1}]}, r"unknown 'parts\[0\].kind'"),
        ({"rate": "100"}, r"'rate' must be a number, not '100'"),
        ({"rate": float("nan")}, r"'rate' must be a number, not nan"),
        ({"rate": False}, r"'rate' must be a number, not False"),
        ({"given": {}}, r"it lacks 'given.path'"),
        ({"given": {"path": "p", "exclude": [[3]]}}, r"'given.exclude\[0\]' must be a list of 2, not \[3\]"),
        ({"given": {"path": "p", "exclude": [["3", []]]}}, r"'given.exclude\[0\]\[0\]' must be a whole number"),
        ({"free": []}, r"'free' must be a mapping, not \[\]"),
        ({"counts": {"a": "x" * 99}}, r"'counts.a' must be a whole number, not 'x{36}\.\.\.$"),
    ],
)
def test_wrong_content_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        typed(Whole, GOOD | change)


def test_a_text_or_a_mapping_is_either():
    kind = str | dict[str, int]
    assert typed(kind, "x") == "x"
    assert typed(kind, {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="'k' must be a text, not None"):
        typed(kind, None, "k")
    with pytest.raises(ValueError, match=r"'k.a' must be a whole number"):
        typed(kind, {"a": "1"}, "k")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "path", "name"]), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from([*GOOD, "free", "counts"]))
def test_any_content_is_good_or_a_value_error(value, key):
    for content in (value, GOOD | {key: value}):
        try:
            found = typed(Whole, content)
        except ValueError:
            continue
        assert isinstance(found, Whole)
        assert all(isinstance(part, Part) for part in found.parts)
