"""The config loader: dataclass defaults, overridden by a YAML file, overridden by `key=value` arguments.

Built on OmegaConf's structured configs. An unknown key (the error suggests the closest valid one), a value of the wrong
type, or one that YAML reads otherwise than it is written (`plain_yaml`) raises `UserError`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import operator
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from umbra.errors import UserError
from umbra.layers import as_fields, check_layer, items, layers, mappings, refuse_drop, refuse_option
from umbra.plain_yaml import Dumper

C = TypeVar("C")
PATIENCE = 60.0
YAML = (".yaml", ".yml")


def load(
    schema: type[C],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    source: str = "on the command line",
) -> C:
    """Returns an instance of the dataclass `schema`, filled from the YAML at `path` and from `key=value` overrides.

    Nested keys are written with dots (`optim.encoder.lr=1e-3`); `key={...}` replaces a mapping, `key.name=...` sets one
    of its entries. Strings are taken literally: `${...}` is not interpolated, and an override of a `str` key is not
    parsed as YAML (enclosing quotes are stripped). Raises `UserError` for an unknown key, a value of the wrong type, a
    missing file or an argument that is not `key=value`; `source` says in it where the overrides come from.
    """
    config = OmegaConf.structured(schema)
    file = copy.deepcopy(config)
    for origin, at, layer in layers(schema, path, overrides, source):
        check_layer(layer, schema, origin)
        if at:
            refuse_drop(schema, file, config, at, layer, origin)
        for key in mappings(schema, at, layer):
            OmegaConf.update(config, key, {}, merge=False)
        try:
            config = OmegaConf.merge(config, OmegaConf.create(as_fields(layer)))
        except (TypeError, OmegaConfBaseException) as error:
            key = (getattr(error, "full_key", "") or "").replace("_.", ".").rstrip("_")
            where = f"key '{key}': " if key else ""
            raise UserError(f"{origin}: {where}{str(error).splitlines()[0]}") from error
        if not at:
            file = copy.deepcopy(config)
    try:
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UserError(f"{getattr(error, 'full_key', None) or 'a key'} is not set: give it as key=value") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'the command line'}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


def given_keys(schema: type, words: Sequence[str], source: str) -> set[str]:
    """The dotted keys of `schema` that `key=value` words set. Raises `UserError` as `load` does."""
    found: set[str] = set()
    for origin, _, layer in layers(schema, None, words, source):
        check_layer(layer, schema, origin)
        found |= {key for key, _ in items(layer)}
    return found


def split_words(words: Sequence[str], options: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    """(config file or None, `key=value` overrides) of a command line without its `options`.

    Raises `UserError` for several config files and for unknown options.
    """
    paths, overrides = split_paths(words, options)
    if len(paths) > 1:
        raise UserError(f"one config file at a time, not {', '.join(paths)}")
    return paths[0] if paths else None, overrides


def split_paths(words: Sequence[str], options: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """As `split_words`, for a command that takes several config files."""
    words = [word for word in words if word not in options]
    for word in words:
        refuse_option(word, options)
    paths = [word for word in words if "=" not in word]
    if len(paths) > 1 and (odd := [path for path in paths if not path.endswith(YAML)]):
        raise UserError(
            f"'{odd[0]}' is neither a config file (.yaml) nor key=value: no spaces around =, and a value with "
            "spaces in quotes"
        )
    return paths, [word for word in words if "=" in word]


def dump(config: Any) -> str:
    """A config dataclass as YAML with all its keys; `load` reads it back."""
    return yaml.dump(as_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts of plain values, keyed as in YAML."""
    return {f.name.rstrip("_"): _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def setting(default: Any, wanted: str = "", choices: Sequence[object] = (), allowed: str = "") -> Any:
    """A config dataclass field with a `default` and the constraints that `check_fields` checks.

    `wanted`: range of a number or of each item of a list (`> 0`, `>= 0 and < 1`); `choices`: the allowed values.
    `allowed`: what the reference shows as allowed where the check needs more than the value.
    """
    metadata = {"wanted": wanted, "choices": tuple(choices), "allowed": allowed}
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


def command(main: Callable[[list[str]], int | None], quiet: bool = False) -> NoReturn:
    """Runs a command-line entry point: a `UserError` becomes one line on stderr and exit code 2.

    `-h` or `--help` prints `USAGE` of the module of `main`, or else its docstring, and the keys of its `CONFIGS` (see
    `umbra.reference.help_of`). `quiet` suppresses usage and error
    messages (only one of several processes should print), except errors marked `alone`: an error of a quiet process is
    printed after `PATIENCE` seconds only, if no other process has ended the run by then. Where nobody reads the output
    any more (`| head`), the exit code is that of SIGPIPE.
    """
    words = sys.argv[1:]
    try:
        if "-h" in words or "--help" in words:
            code = 0 if quiet else _help(sys.modules[main.__module__], words)
        else:
            code = main(words) or 0
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        if not quiet:
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if quiet and not error.alone:
            time.sleep(PATIENCE)  # a launcher kills all processes when one exits: let the one that prints do so first
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _help(module: Any, words: list[str]) -> int:
    from umbra.reference import help_of

    print((getattr(module, "USAGE", "") or module.__doc__ or "").strip())
    print(help_of(getattr(module, "CONFIGS", {}), words), end="")
    return 0


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main(argv: list[str]) -> None:
    """Prints the reference of one config's keys."""
    from umbra.reference import SCHEMAS, reference

    if len(argv) != 1:
        raise UserError(f"usage: python -m umbra.config {'|'.join(SCHEMAS)}")
    print(reference(argv[0]), end="")


if __name__ == "__main__":
    command(main)
