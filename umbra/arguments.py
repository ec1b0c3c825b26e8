"""The arguments that a config gives to a registered part (an encoder, a view): their names and types."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union


def arguments(make: Callable[..., Any], given: int = 0) -> dict[str, Any]:
    """Name -> type (Any if it has none) of the arguments of a class, a function, or a `partial` of one.

    Without the first `given`, which the caller gives by position, and without those that a `partial` gives by name.
    """
    bound: set[str] = set()
    inner: Any = make
    while isinstance(inner, functools.partial):
        bound |= inner.keywords.keys()
        inner = inner.func
    hints = typing.get_type_hints(inner.__init__ if isinstance(inner, type) else inner)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in inspect.signature(make).parameters.items() if parameter.kind in named]
    return {name: hints.get(name, Any) for name in names[given:] if name not in bound}


def fitted(value: Any, kind: Any) -> Any:
    """`value` as the type `kind`: an int serves as a float, a list as a tuple. Raises `TypeError` for others."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or type(value) is kind or (kind is None and value is None):
        return value
    if outer in (Union, types.UnionType):
        return value if type(value) in inner else _as_one_of(value, inner)
    if outer is Literal and any(value == word and type(value) is type(word) for word in inner):
        return value
    if outer is dict and isinstance(value, dict):
        return {fitted(key, inner[0]): fitted(item, inner[1]) for key, item in value.items()}
    if outer in (list, tuple, Sequence) and isinstance(value, list | tuple):
        every = inner[0] if outer is not tuple or inner[1:] == (...,) else None
        if every is None and len(value) != len(inner):
            raise TypeError(f"{len(value)} values for {shown(kind)}")
        items = [fitted(item, every or inner[place]) for place, item in enumerate(value)]
        return items if outer is list else tuple(items)
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{value!r} is not of type {shown(kind)}")


def _as_one_of(value: Any, kinds: Sequence[Any]) -> Any:
    for kind in kinds:
        try:
            return fitted(value, kind)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is of none of the types {', '.join(map(shown, kinds))}")


def shown(kind: Any) -> str:
    """A type as one writes it."""
    plain = isinstance(kind, type) and not typing.get_args(kind)
    return kind.__name__ if plain else str(kind).replace("typing.", "").replace("collections.abc.", "")
