"""Refuses what YAML 1.1 reads otherwise than it is written: octal and base-60 numbers, keys that are not text.

The check is on the text, since its result (8 for `010`) no longer shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from umbra.errors import UserError

MISSING = "???"  # to OmegaConf, a value that is still to be given
_LEADING_ZERO = re.compile(r"([-+]?)0[0_]*([0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_.]*[eE][-+]?[0-9]+")
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


def refuse_surprises(text: str, key: str = "") -> None:
    """Raises `UserError` for the first such value or key in a YAML text; `key`: the dotted key of the whole text."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None and (problem := next(_problems(node, key), "")):
        raise UserError(problem)


class Dumper(yaml.SafeDumper):
    """Writes text that would be read as a number in quotes (PyYAML writes `08` and `1e3` without)."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(_TEXT, text, style="'" if _as_meant(text) or _EXPONENT.fullmatch(text) else None)


Dumper.add_representer(str, _represent_text)


def _problems(node: yaml.Node, key: str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _key_problems(name, value, key)
            yield from _problems(value, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _problems(item, key)
    elif node.value == MISSING:
        yield f"key '{key}': {MISSING} is no value: give one, or leave the key out"
    elif node.style is None and (plain := _as_meant(node.value)):
        yield f"key '{key}': write {plain}, not {node.value} ('{node.value}' in quotes if it is text)"


def _key_problems(name: yaml.Node, value: yaml.Node, key: str) -> Iterator[str]:
    where = f"key '{key}': " if key else ""
    if not isinstance(name, yaml.ScalarNode):
        yield f"{where}a list or a mapping cannot be a key"
    elif name.tag not in (_TEXT, _MERGE):
        yield f"{where}the key {name.value or 'without a name'} is not text: write it in quotes, '{name.value}'"
    elif name.style is None and ":" in name.value and value.value == "":
        first, _, second = name.value.partition(":")
        yield f"{where}write {first}: {second}, with a space after the colon, not {name.value}"


def _as_meant(text: str) -> str:
    """The decimal number that was probably meant; empty if the text is a plain number or no number."""
    if zero := _LEADING_ZERO.fullmatch(text):
        return zero[1] + zero[2]
    if not _BASE_60.fullmatch(text):
        return ""
    value = 0.0
    for part in text.lstrip("+-").replace("_", "").split(":"):
        value = value * 60 + float(part)
    return f"{'-' * text.startswith('-')}{value:.15g}"
