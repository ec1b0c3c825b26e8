"""Checks values that were read from a JSON file against type hints: damaged content is named, not met later."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def typed(kind: type[T], value: Any, name: str = "") -> T:
    """`value` as `kind`, in which mappings become dataclasses and lists become tuples where `kind` says so.

    `kind`: a dataclass, a `TypedDict` (other keys are kept; no `NotRequired`, which a module with postponed annotations
    does not show), `dict[str, X]`, `list[X]`, `tuple[X, Y]`, `X | None`, `X | dict[str, Y]`, `Any`, `str`, `bool`,
    `int` or `float` (finite; an `int` is one). Raises `ValueError` that names the key.
    """
    checked: T = _typed(kind, value, name)
    return checked


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        if value is None and type(None) in inner:
            return None
        kinds, mapping = [k for k in inner if k is not type(None)], isinstance(value, dict)
        return _typed(next((k for k in kinds if mapping == (typing.get_origin(k) is dict)), kinds[0]), value, name)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    if typing.is_typeddict(kind):
        _require(isinstance(value, dict), name, "a mapping", value)
        _refuse_missing(kind.__required_keys__, value, name)
        return value | _fields(kind, value, name)
    if (origin or kind) is dict:
        _require(isinstance(value, dict), name, "a mapping", value)
        return {key: _typed(inner[1], item, _key(name, key)) for key, item in value.items()} if inner else value
    if (origin or kind) is list:
        _require(isinstance(value, list), name, "a list", value)
        return [_typed(inner[0], item, f"{name}[{i}]") for i, item in enumerate(value)] if inner else value
    if origin is tuple:
        _require(isinstance(value, list) and len(value) == len(inner), name, f"a list of {len(inner)}", value)
        return tuple(_typed(k, item, f"{name}[{i}]") for i, (k, item) in enumerate(zip(inner, value)))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(number if kind is float else type(value) is kind, name, _WORDS[kind], value)
    return value


_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    _require(isinstance(value, dict), name, "a mapping", value)
    fields = dataclasses.fields(kind)
    wanted = {f.name for f in fields if f.default is dataclasses.MISSING is f.default_factory}
    _refuse_missing(wanted, value, name)
    if unknown := sorted(value.keys() - {f.name for f in fields}):
        raise ValueError(f"unknown '{_key(name, unknown[0])}'")
    return kind(**_fields(kind, value, name))


def _fields(kind: Any, value: Mapping[str, Any], name: str) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {key: _typed(hints[key], item, _key(name, key)) for key, item in value.items() if key in hints}


def _refuse_missing(wanted: typing.Iterable[str], value: Mapping[str, Any], name: str) -> None:
    if missing := sorted(set(wanted) - value.keys()):
        raise ValueError(f"it lacks '{_key(name, missing[0])}'")


def _require(good: bool, name: str, wanted: str, value: Any) -> None:
    if not good:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        what = f"'{name}'" if name else "it"
        raise ValueError(f"{what} must be {wanted}, not {shown}")


def _key(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
