"""Markdown reference of a config's keys: type, default, range and meaning of each.

The meaning of a key is the docstring under its field in the dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator
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
    module, _, schema = SCHEMAS[name].partition(":")
    return getattr(importlib.import_module(module), schema)


def reference(name: str) -> str:
    """The reference page of `pretrain`, `shard`, `transfer` or `study`. Raises `UserError` for any other name."""
    if name not in SCHEMAS:
        raise UserError(f"'{name}' has no reference{near_miss(name, SCHEMAS)}")
    rows = list(_rows(schema_of(name)(), ""))
    head = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"# Keys of `{name}`", "", *head, *rows]) + "\n"


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


def _rows(config: Any, prefix: str) -> Iterator[str]:
    """A row for each key of a config with its defaults: those of a section may differ from its class's."""
    schema = type(config)
    hints, meaning = typing.get_type_hints(schema), docstrings(schema)
    for field in dataclasses.fields(schema):
        key, kind = prefix + field.name.rstrip("_"), hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _rows(getattr(config, field.name), f"{key}.")
            continue
        known = field.metadata
        allowed = known.get("allowed") or known.get("wanted") or ", ".join(map(str, known.get("choices", ())))
        shown = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        default = getattr(config, field.name)
        written = repr(default) if default == "" else str(default)
        cells = (f"`{key}`", shown.replace("typing.", ""), f"`{written}`", allowed, meaning.get(field.name, ""))
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
