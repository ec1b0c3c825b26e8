"""Label columns to targets: classes one-hot, labels 0 or 1, numbers; NaN in the row of a record without a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.evaluate.task import TaskConfig
from umbra.errors import UserError

MANY_NUMBERS = 10  # different numbers in a column from which on it is taken for a quantity, not for classes
MANY_VALUES = 200  # different words in a column from which on it is taken for free text
LEFT_OUT = {"classes": "none of the classes", "labels": "no label and are left out", "number": "no number"}
_TRUTH = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


def read(config: TaskConfig, tables: Mapping[str, pa.Table], task: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of the targets and, per split, float64 `[n, K]`, NaN where the record has no value.

    `task` begins the lines of the `UserError` that a column of another kind raises.
    """
    columns, some = config.used_columns, next(iter(tables.values()))
    if config.kind == "number":
        if config.classes:
            raise UserError(f"{task}: kind=number has no classes: leave out `classes`, or use kind=classes")
        return columns, {s: np.column_stack([_numbers(t, c, task) for c in columns]) for s, t in tables.items()}
    if len(columns) > 1 or (config.kind == "labels" and not config.classes and _is_truth(some, columns[0])):
        if config.kind == "classes":
            raise UserError(f"{task}: kind=classes takes one column: several are kind=labels or kind=number")
        if config.classes:
            raise UserError(f"{task}: several columns have no `classes`: each is a label of 0 and 1")
        return columns, {s: np.column_stack([_truths(t, c, task) for c in columns]) for s, t in tables.items()}
    values = {s: [items_of(v) for v in t.column(columns[0]).to_pylist()] for s, t in tables.items()}
    names = list(config.classes) or _names(config, some.column(columns[0]).type, values, columns[0], task)
    classes = config.classes or {name: [name] for name in names}
    first = config.kind == "classes"
    return names, {s: _members(of, classes, first) for s, of in values.items()}


def usable(
    config: TaskConfig, names: Sequence[str], train: np.ndarray, task: str, split: str = "train"
) -> tuple[list[int], list[str]]:
    """The columns of the target that vary over the records of `split`, by default train, and notes on the others.

    Raises `UserError` if too few do.
    """
    train = train[kept(config, train)]
    if config.kind == "number":
        for name, values in zip(names, train.T):
            if not len(values) or (values == values[0]).all():
                what = f"is {values[0]:g} in all records" if len(values) else "has no number"
                raise UserError(f"{task}: in the {split} split column '{name}' {what}: there is nothing to tell")
        return list(range(len(names))), []
    count = train.sum(0) if len(train) else np.zeros(len(names))
    used = [k for k, n in enumerate(count) if n and (config.kind == "classes" or n < len(train))]
    notes = [f"class {n} has no {split} examples and is dropped" for n, c in zip(names, count) if not c]
    if config.kind == "labels":
        full = [n for n, c in zip(names, count) if 0 < c == len(train)]
        notes += [f"all {split} records have {n}: it is dropped" for n in full]
    wanted = 2 if config.kind == "classes" else 1
    if len(used) < wanted:
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        what = "two are needed" if wanted == 2 else "one that some records have and others have not is needed"
        raise UserError(
            f"{task}: the {split} split of {config.data} has {int((count > 0).sum())} of the classes "
            f"{listed or '(none)'}, {what}: do the `classes` match column '{config.used_columns[0]}'?"
        )
    return used, notes


def kept(config: TaskConfig, target: np.ndarray) -> np.ndarray:
    """Which records `[n]` have a target."""
    known = ~np.isnan(target).any(1)
    if config.kind == "classes" or (config.kind == "labels" and config.unlabelled == "drop"):
        known &= (target > 0).any(1)
    return known


def items_of(value: Any) -> frozenset[str] | None:
    """The words of a cell: its items if it is a list, else its one value; None if it is missing."""
    if isinstance(value, list | tuple):
        return frozenset(word(item) for item in value if not missing(item))
    return None if missing(value) else frozenset([word(value)])


def missing(value: Any) -> bool:
    """Whether a value is none: null, NaN or an empty text."""
    return value is None or value != value or value == ""


def is_list(kind: pa.DataType) -> bool:
    """Whether the cells of a column of this type are lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def word(value: Any) -> str:
    """A value as it is written in `classes`: whole numbers without a point, truth in small letters."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _members(values: Sequence[frozenset[str] | None], classes: Mapping[str, Sequence[str]], first: bool) -> np.ndarray:
    """0 or 1 `[n, K]`: which classes list a word of each cell (of several only the `first`); NaN for a missing cell."""
    holders: dict[str, list[int]] = {}
    for k, listed in enumerate(classes.values()):
        for entry in listed:
            holders.setdefault(str(entry), []).append(k)
    out = np.zeros((len(values), len(classes)))
    for row, words in zip(out, values):
        if words is None:
            row[:] = np.nan
        elif found := sorted({k for w in words for k in holders.get(w, ())}):
            row[found[:1] if first else found] = 1
    return out


def _names(config: TaskConfig, kind: pa.DataType, values: Mapping[str, list], column: str, task: str) -> list[str]:
    """Each value of the column as a class. Raises `UserError` for a quantity, free text, or several values a cell."""
    found = {w for of in values.values() for words in of if words is not None for w in words}
    if config.kind == "classes" and is_list(kind):
        raise UserError(
            f"{task}: column '{column}' has several values a record: list those of each class in `classes`, or use "
            "kind=labels"
        )
    numeric = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    if numeric and (len(found) > MANY_NUMBERS or column == "age"):
        raise UserError(
            f"{task}: column '{column}' holds {len(found)} different numbers: use kind=number, or list the values of "
            "each class in `classes`"
        )
    if len(found) > MANY_VALUES:
        raise UserError(
            f"{task}: column '{column}' holds {len(found)} different values, as free text does: list those of each "
            "class in `classes`"
        )
    return sorted(found)


def _is_truth(table: pa.Table, column: str) -> bool:
    """Whether a column holds 0 and 1 or true and false, and so is a label by itself."""
    of = table.column(column)
    if is_list(of.type):
        return False
    return {w.lower() for v in of.unique().to_pylist() for w in items_of(v) or ()} <= _TRUTH.keys()


def _truths(table: pa.Table, column: str, task: str) -> np.ndarray:
    """A column of 0 and 1 or true and false as float64 `[n]`."""
    if is_list(table.column(column).type):
        raise UserError(f"{task}: column '{column}' has several values a record: use it alone, as column={column}")
    words = [items_of(v) for v in table.column(column).to_pylist()]
    truths = [np.nan if w is None else _TRUTH.get(next(iter(w)).lower()) for w in words]
    if None in truths:
        other = next(iter(words[truths.index(None)] or ()))
        raise UserError(f"{task}: column '{column}' holds '{other[:30]}', a label is 0 or 1, true or false")
    return np.array(truths, dtype=np.float64)


def _numbers(table: pa.Table, column: str, task: str) -> np.ndarray:
    """A column of numbers as float64 `[n]`; NaN also for infinite ones."""
    of = table.column(column)
    if not (pa.types.is_floating(of.type) or pa.types.is_integer(of.type)):
        shown = next((word(v) for v in of.to_pylist() if v is not None), "nothing")
        raise UserError(f"{task}: column '{column}' holds '{shown[:30]}', not numbers: use kind=classes or kind=labels")
    values = of.cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)
