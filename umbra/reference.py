"""Reference of a config's keys, as a Markdown page and for `--help`: type, default, range and meaning of each.

The meaning of a key is the docstring under its field in the dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbra.errors import UserError, near_miss

SCHEMAS = {
    "pretrain": "trainer.config:PretrainConfig",
    "shard": "sharding.options:BuildConfig",
    "transfer": "trainer.evaluate.config:TransferConfig",
    "study": "trainer.study.config:StudyConfig",
}


def schema_of(name: str) -> Any:
    """The config dataclass of `pretrain`, `shard`, `transfer` or `study`, imported by name."""
    return _class(SCHEMAS[name])


def _class(schema: str) -> Any:
    module, _, name = schema.partition(":")
    return getattr(importlib.import_module(module), name)


def reference(name: str) -> str:
    """The reference page of `pretrain`, `shard`, `transfer` or `study`. Raises `UserError` for any other name."""
    if name not in SCHEMAS:
        raise UserError(f"'{name}' has no reference{near_miss(name, SCHEMAS)}")
    rows = [_row(key) for key in keys_of(schema_of(name)())]
    head = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"# Keys of `{name}`", "", *head, *rows]) + "\n"


def _row(key: Key) -> str:
    cells = (f"`{key.name}`", key.kind, f"`{key.default}`", key.allowed, key.meaning)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def docstrings(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of its bases, each as one line."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, below in zip(tree.body, tree.body[1:]):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[node.target.id] = " ".join(str(below.value.value).split())
    return found


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name, type, default as written, allowed values and meaning."""

    name: str
    kind: str
    default: str
    allowed: str
    meaning: str


def keys_of(config: Any, prefix: str = "") -> Iterator[Key]:
    """The keys of a config with its defaults: those of a section may differ from its class's."""
    schema = type(config)
    hints, meaning = typing.get_type_hints(schema, include_extras=True), docstrings(schema)
    for field in dataclasses.fields(schema):
        name, kind, default = prefix + field.name.rstrip("_"), hints[field.name], getattr(config, field.name)
        if dataclasses.is_dataclass(kind):
            yield from keys_of(default, f"{name}.")
            continue
        known = field.metadata
        allowed = known.get("allowed") or known.get("wanted") or ", ".join(map(str, known.get("choices", ())))
        kind = str | dict[str, str] if typing.get_origin(kind) is typing.Annotated else kind  # TextOrTexts
        shown = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        written = str(default).lower() if isinstance(default, bool) else str(default) or repr(default)
        yield Key(name, shown.replace("typing.", ""), written, allowed, meaning.get(field.name, ""))


def listing(schema: str) -> str:
    """The keys of the config `module:class` for a terminal: `key=default`, the allowed values, the meaning."""
    lines = []
    for key in keys_of(_class(schema)()):
        allowed = f"   ({key.allowed})" if key.allowed else ""
        lines.append(f"  {key.name}={'' if key.default == repr('') else key.default}{allowed}")
        lines += textwrap.wrap(key.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def help_of(configs: Mapping[str, str], words: Sequence[str]) -> str:
    """The keys of the sub-command that `words` name (`""`: the command itself); empty if it has none.

    `configs`: the config (`module:class`) of each sub-command.
    """
    name = next((word for word in words if word in configs), "")
    return f"\nKeys, with their defaults (KEY=VALUE sets one):\n\n{listing(configs[name])}" if name in configs else ""
