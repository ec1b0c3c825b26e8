"""The config loader: dataclass defaults, overridden by a YAML file, overridden by `key=value` arguments.

Built on OmegaConf's structured configs. An unknown key (the error suggests the closest valid one) or a value of the
wrong type raises `UserError`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import keyword
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from umbra.errors import UserError

C = TypeVar("C")


def load(schema: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Returns an instance of the dataclass `schema`, filled from the YAML at `path` and from `key=value` overrides.

    Nested keys are written with dots (`optim.encoder.lr=1e-3`). Strings are taken literally: `${...}` is not
    interpolated, and an override of a `str` key is not parsed as YAML (enclosing quotes are stripped). Raises
    `UserError` for an unknown key, a value of the wrong type, a missing file or an argument that is not `key=value`.
    """
    config = OmegaConf.structured(schema)
    for origin, layer in _layers(schema, path, overrides):
        _refuse_unknown(layer, schema, origin)
        try:
            config = OmegaConf.merge(config, OmegaConf.create(_as_fields(layer)))
        except TypeError as error:  # OmegaConf's error for a list in place of a dict, or the reverse
            raise UserError(f"{origin}: a list where a mapping is needed, or the reverse") from error
        except OmegaConfBaseException as error:
            key = (getattr(error, "full_key", "") or "").replace("_.", ".").rstrip("_")
            where = f"key '{key}': " if key else ""
            if typing.get_origin(dict(_keys(schema)).get(key)) is list:
                raise UserError(f"{origin}: {where}this is a list: write {key}=[A,B], or [] for none") from error
            raise UserError(f"{origin}: {where}{str(error).splitlines()[0]}") from error
    try:
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UserError(f"{getattr(error, 'full_key', None) or 'a key'} is not set: give it as key=value") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'the command line'}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


def config_file(path: str | Path) -> Path:
    """`path` if it exists; otherwise, for `configs/...`, the copy that was installed with the package."""
    path, here = Path(path), Path(__file__).parent
    if not path.exists() and path.parts[:1] == ("configs",):
        for root in (here, here.parent):  # wheel, checkout
            if (root / path).parent.is_dir():
                return root / path
    return path


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """(config file or None, `key=value` overrides) of a command line. Raises `UserError` for several config files."""
    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise UserError(f"one config file at a time, not {', '.join(paths)}")
    return paths[0] if paths else None, [word for word in words if "=" in word]


def dump(config: Any) -> str:
    """A config dataclass as YAML with all its keys; `load` reads it back."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None)


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts of plain values, keyed as in YAML."""
    return {f.name.rstrip("_"): _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def setting(default: Any, wanted: str = "", choices: Sequence[object] = ()) -> Any:
    """A config dataclass field with a `default` and the constraints that `check_fields` checks.

    `wanted`: range of a number or of each item of a list (`> 0`, `>= 0 and < 1`); `choices`: the allowed values.
    """
    metadata = {"wanted": wanted, "choices": tuple(choices)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=functools.partial(copy.deepcopy, default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(config: Any, prefix: str = "") -> None:
    """Raises `UserError` if a value of `config` or of one of its sections is not among its field's choices, not finite
    or out of range (see `setting`)."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name.rstrip("_")
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{key}.")
        choices, wanted = field.metadata.get("choices"), field.metadata.get("wanted")
        if choices and value not in choices:
            raise UserError(f"{key}={value} is unknown; use {', '.join(map(str, choices))}")
        if wanted:
            for number in value if isinstance(value, list) else [value]:
                _check_number(key, number, wanted)


def _check_number(key: str, number: float, wanted: str) -> None:
    if not abs(number) < math.inf:
        raise UserError(f"{key}={number} must be a finite number")
    if not all(_COMPARE[sign](number, float(limit)) for sign, limit in map(str.split, wanted.split(" and "))):
        raise UserError(f"{key}={number} must be {wanted}")


_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def _layers(schema: type, path: str | Path | None, overrides: Sequence[str]) -> Iterator[tuple[str, dict[Any, Any]]]:
    if path is not None:
        yield str(path), _read_yaml(config_file(path))
    for word in overrides:
        yield f"'{word}' on the command line", _read_word(word, schema)


def _read_word(word: str, schema: type) -> dict[Any, Any]:
    key, sign, value = word.partition("=")
    if not sign or not key:
        raise UserError(f"'{word}' on the command line is not of the form key=value")
    if dict(_keys(schema)).get(key) is str:
        quoted = re.fullmatch(r"(['\"])(.*)\1", value, re.DOTALL)
        nested: Any = quoted[2] if quoted else value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        return nested
    try:
        yaml.safe_load(value)
        return _plain_layer(OmegaConf.from_dotlist([word]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"'{word}' on the command line: the value is not valid YAML") from error


def _read_yaml(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        hint = f"; available: {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} does not exist{hint}")
    try:
        layer = OmegaConf.load(path)
        if isinstance(layer, DictConfig):
            return _plain_layer(layer)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    raise UserError(f"config file {path} must contain `key: value` lines, not a list or a single value")


def _plain_layer(layer: DictConfig) -> dict[Any, Any]:
    plain = OmegaConf.to_container(layer)
    assert isinstance(plain, dict)
    return plain


def _refuse_unknown(layer: dict[Any, Any], schema: type, origin: str) -> None:
    known = dict(_keys(schema))
    for key, value in _items(layer):
        if key in known:
            if dataclasses.is_dataclass(known[key]) and not isinstance(value, dict):
                inner = " or ".join(f"{key}.{name}=..." for name, _ in _field_types(known[key]))
                raise UserError(f"{origin}: '{key}' is a section: give {inner}")
        elif not any(key.startswith(f"{k}.") for k, kind in known.items() if not dataclasses.is_dataclass(kind)):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or _same_leaf(key, set(known))
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(_top(set(known))))}"
            raise UserError(f"{origin}: unknown key '{key}'{hint}")


def _same_leaf(key: str, known: set[str]) -> list[str]:
    leaf = key.rpartition(".")[2]
    return sorted(k for k in known if k.rpartition(".")[2] == leaf)[:1]


def _top(keys: set[str]) -> set[str]:
    return {k for k in keys if "." not in k}


def _keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema and its type."""
    for name, kind in _field_types(schema):
        yield prefix + name, kind
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, prefix + name + ".")


@functools.cache
def _field_types(schema: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(schema)
    return [(f.name.rstrip("_"), hints[f.name]) for f in dataclasses.fields(schema)]


def _as_fields(node: Any) -> Any:
    """`node` as OmegaConf needs it: Python keywords (`global`) get a trailing underscore, `${` is escaped."""
    if isinstance(node, dict):
        return {
            f"{k}_" if keyword.iskeyword(str(k)) and str(k).islower() else k: _as_fields(v) for k, v in node.items()
        }
    if isinstance(node, list):
        return [_as_fields(v) for v in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def _items(layer: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in layer.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{name}.")


def command(main: Callable[[list[str]], int | None], quiet: bool = False) -> NoReturn:
    """Runs a command-line entry point: a `UserError` becomes one line on stderr and exit code 2.

    `-h` or `--help` prints `USAGE` of the module of `main`, or else its docstring. `quiet` suppresses usage and error
    messages (only one of several processes should print), except errors marked `alone`.
    """
    words, module = sys.argv[1:], sys.modules[main.__module__]
    if "-h" in words or "--help" in words:
        if not quiet:
            print((getattr(module, "USAGE", "") or module.__doc__ or "").strip())
        sys.exit(0)
    try:
        sys.exit(main(words) or 0)
    except KeyboardInterrupt:
        if not quiet:
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if not quiet or error.alone:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> None:
    """Prints the reference of one config's keys."""
    from umbra.reference import SCHEMAS, reference

    if len(argv) != 1:
        raise UserError(f"usage: python -m umbra.config {'|'.join(SCHEMAS)}")
    print(reference(argv[0]), end="")


if __name__ == "__main__":
    command(main)
