"""The one config loader: dataclass defaults <- YAML file <- `key=value` words of the command line.

Built on OmegaConf's structured configs. A key that the dataclass does not know, or a value of the wrong type, is a
`UserError` that names the nearest key that would work.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import keyword
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

C = TypeVar("C")


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and how. Exit code 2 at the command line."""


def load(schema: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Returns an instance of the dataclass `schema`, filled from the YAML at `path` and from `key=value` overrides.

    Nested keys are written with dots (`optim.encoder.lr=1e-3`). Raises `UserError` for an unknown key, a value of the
    wrong type, a missing file or a word that is no `key=value`.
    """
    config = OmegaConf.structured(schema)
    for origin, layer in _layers(path, overrides):
        _refuse_unknown(layer, schema, origin)
        try:
            config = OmegaConf.merge(config, _as_fields(layer))
        except OmegaConfBaseException as error:
            key = (getattr(error, "full_key", "") or "").replace("_.", ".").rstrip("_")
            raise UserError(f"{origin}: key '{key}': {str(error).splitlines()[0]}") from error
    try:
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UserError(f"{getattr(error, 'full_key', None) or 'a key'} is not set: give it as key=value") from error
    assert isinstance(result, schema)
    return result


def dump(config: Any) -> str:
    """The YAML text of a config dataclass, every key resolved; `load` reads it back."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None)


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts of plain values, under the names that its YAML uses."""
    return {f.name.rstrip("_"): _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _layers(path: str | Path | None, overrides: Sequence[str]) -> Iterator[tuple[str, DictConfig]]:
    if path is not None:
        yield str(path), _read_yaml(Path(path))
    for word in overrides:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UserError(f"'{word}' on the command line is not of the form key=value")
        try:
            yaml.safe_load(value)
            yield f"'{word}' on the command line", OmegaConf.from_dotlist([word])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{word}' on the command line: the value is not valid YAML") from error


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        hint = f"; there are {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} does not exist{hint}")
    try:
        layer = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"config file {path} must hold `key: value` lines, not a list or a single value")
    return layer


def _refuse_unknown(layer: DictConfig, schema: type, origin: str) -> None:
    known = set(_keys(schema))
    free = {key for key in known if _is_free(schema, key)}
    for key in _keys_of(layer):
        if key in known or any(key.startswith(f + ".") for f in free):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or _same_leaf(key, known)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(_top(known)))}"
        raise UserError(f"{origin}: unknown key '{key}'{hint}")


def _same_leaf(key: str, known: set[str]) -> list[str]:
    leaf = key.rpartition(".")[2]
    return sorted(k for k in known if k.rpartition(".")[2] == leaf)[:1]


def _top(keys: set[str]) -> set[str]:
    return {k for k in keys if "." not in k}


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in _field_types(schema):
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, prefix + name + ".")


def _is_free(schema: Any, key: str) -> bool:
    kind: Any = schema
    for part in key.split("."):
        kind = dict(_field_types(kind))[part]
    return not dataclasses.is_dataclass(kind)


@functools.cache
def _field_types(schema: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(schema)
    return [(f.name.rstrip("_"), hints[f.name]) for f in dataclasses.fields(schema)]


def _as_fields(layer: DictConfig) -> DictConfig:
    """Keys that Python keeps for itself (`global`) are fields with an underscore (`global_`)."""

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {f"{k}_" if keyword.iskeyword(str(k)) else k: rename(v) for k, v in node.items()}
        return node

    return OmegaConf.create(rename(OmegaConf.to_container(layer)))


def _keys_of(layer: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in layer:
        key = prefix + str(name)
        yield key
        value = layer._get_node(name)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _keys_of(value, key + ".")


def command(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command-line entry point: a `UserError` becomes one line on stderr and exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
