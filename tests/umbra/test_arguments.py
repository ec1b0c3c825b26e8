"""Arguments of classes, functions and partials, and values by type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pytest
from torch import nn

from umbra.arguments import arguments, fitted, shown
from umbra.encoders import registry
from umbra.encoders.backbone import Backbone
from umbra.errors import UserError


class Made(Backbone):
    def __init__(self, leads: int, samples: int, width: int | None = None, drop: float = 0.0, **others: int) -> None:
        super().__init__()
        self.dim, self.drop, self.width = 4, drop, width
        self.body = nn.Linear(leads, 4)

    def forward(self, x):
        return self.body(x.mean(-1))


def factory(n: int, length: int, width: int | None = None, *, drop: float = 0.0, loose=1) -> Backbone:
    return Made(n, length, width, drop)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Made, ["width", "drop"]),
        (factory, ["width", "drop", "loose"]),
        (partial(Made, width=3), ["drop"]),
        (partial(factory, drop=0.5), ["width", "loose"]),
        (partial(partial(factory, drop=0.5), loose=2), ["width"]),
    ],
)
def test_the_arguments_are_those_of_the_callable_itself(make, names):
    kinds = {"width": int | None, "drop": float, "loose": Any}
    assert arguments(make, given=2) == {name: kinds[name] for name in names}


@pytest.mark.parametrize("make", [Made, factory, partial(Made), partial(factory)])
def test_a_registered_factory_keeps_its_arguments(make, monkeypatch):
    monkeypatch.setitem(registry.ENCODERS, "made", make)
    built = registry.build_encoder("made", 2, 8, {"width": None, "drop": 1})
    assert (built.width, built.drop, type(built.drop)) == (None, 1.0, float)
    assert registry.build_encoder("made", 2, 8, {"width": 7}).width == 7
    for args, said in (
        ({"width": "7"}, r"encoder\.args\.width=7 must be of type int \| None"),
        ({"width": 1.0}, r"encoder\.args\.width=1\.0 must be of type int \| None"),
        ({"drop": True}, r"encoder\.args\.drop=True must be of type float"),
        ({"widht": 7}, r"encoder\.args\.widht is not an argument of made; did you mean 'width'\?"),
        ({"leads": 7}, r"encoder\.args\.leads is not an argument of made"),
        ({"samples": 7}, r"encoder\.args\.samples is not an argument of made"),
    ):
        with pytest.raises(UserError, match=said):
            registry.build_encoder("made", 2, 8, args)


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (1, int, 1), (1, float, 1.0), (1.5, float, 1.5), ("a", str, "a"), (True, bool, True), (None, int | None, None),
        (1, int | float, 1), (1, float | None, 1.0), ([1, 2], list[int], [1, 2]), ([1, 2], list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)), ([1, 2], tuple[int, float], (1, 2.0)), ([1, 2], Sequence[int], (1, 2)),
        ("a", Literal["a", "b"], "a"), ({"a": 1}, dict[str, float], {"a": 1.0}), ({}, Any, {}),
    ],
)  # fmt: skip
def test_a_value_of_its_type_passes(value, kind, result):
    found = fitted(value, kind)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.0, int), (True, int), (True, float), ("1", int), (1, str), (0, bool), (None, int), ("a", int | None),
        ([1.5], list[int]), (1, list[int]), ([1], tuple[int, int]), ([1, "a"], tuple[int, ...]), ("c", Literal["a"]),
        ({"a": "b"}, dict[str, int]), ([], dict[str, int]), ("ab", Sequence[str]), (True, Literal[1]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value, kind):
    with pytest.raises(TypeError):
        fitted(value, kind)


def test_a_type_is_shown_as_it_is_written():
    assert [shown(k) for k in (int, int | None, list[int], Sequence[int])] == [
        "int", "int | None", "list[int]", "Sequence[int]",
    ]  # fmt: skip
