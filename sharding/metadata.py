"""The table that comes with a data set: its records, and their patient, age, sex, codes, split and labels."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sharding.config import UserError
from sharding.deidentify import identity

MAX_WORDS = 50


@dataclass
class TableConfig:
    """Where a data set's table is and what its columns are called: of each list, the first name that exists counts.

    `record_low` is looked at before `record` where the target rate is at most `low_rate` Hz.
    """

    file: list[str] = field(default_factory=list)
    record: list[str] = field(default_factory=lambda: ["record"])
    record_low: list[str] = field(default_factory=list)
    low_rate: float = 0.0
    patient: list[str] = field(default_factory=lambda: ["patient_id"])
    age: list[str] = field(default_factory=lambda: ["age"])
    sex: list[str] = field(default_factory=lambda: ["sex"])
    codes: list[str] = field(default_factory=lambda: ["codes"])
    sex_values: dict[str, str] = field(default_factory=dict)


@dataclass
class Table:
    """The rows as text: `records` (relative paths without suffix), `words` (kind -> column), `columns` (all)."""

    path: str
    records: list[str]
    words: dict[str, list[str]]
    columns: dict[str, list[str]]
    identifying: set[str]

    def column(self, name: str, key: str) -> list[str]:
        """A column by name; `key` is the config's key that asks for it. Raises `UserError` naming the nearest one."""
        if name in self.columns:
            return self.columns[name]
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.columns)}"
        raise UserError(f"{key}: {Path(self.path).name} has no column '{name}'; {hint}")


def read_table(root: Path, config: TableConfig, rate: float) -> Table | None:
    """The first of `config.file` in `root`; None if the config names none. Raises `UserError` if all are missing."""
    if not config.file:
        return None
    path = next((root / name for name in config.file if (root / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{root} holds none of {', '.join(config.file)} (source.table.file): is it the data set's top folder?"
        )
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable CSV table: {' '.join(str(error).split())}") from error
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    low = config.record_low if rate <= config.low_rate else []
    chosen = {
        "record": _first(columns, [*low, *config.record]),
        "patient": _first(columns, config.patient),
        "age": _first(columns, config.age),
        "sex": _first(columns, config.sex),
        "codes": _first(columns, config.codes),
    }
    if chosen["record"] is None:
        asked = ", ".join([*low, *config.record])
        raise UserError(f"source.table.record: {path.name} has no column {asked}; it has {', '.join(columns)}")
    records = [re.sub(r"\.(hea|dat|mat)$", "", name.strip()) for name in columns[chosen["record"]]]
    words = {kind: columns[name] for kind, name in chosen.items() if name and kind != "record"}
    names = {name for name in [*low, *config.record, *config.record_low, *config.patient] if name in columns}
    return Table(str(path), records, words, columns, names)


def _first(columns: dict[str, list[str]], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def label(table: Table, name: str) -> list[Any]:
    """A label column as whole numbers, numbers (NaN where empty) or words (None where empty).

    Raises `UserError` for a missing column, a column that names records or patients, and one that looks like free
    text or like an identifier: more than 50 different words, dates, or whole numbers that nearly all differ.
    """
    values = [v.strip() for v in table.column(name, "labels")]
    if name in table.identifying:
        raise UserError(f"labels: column '{name}' names records or patients and stays in private/: leave it out")
    distinct = {v for v in values if identity(v)}
    numbers = {v: _number(v) for v in distinct}
    if all(n is not None for n in numbers.values()):
        whole = all(float(n).is_integer() for n in numbers.values())  # type: ignore[arg-type]
        if whole and len(distinct) > max(MAX_WORDS, len(values) // 2):
            raise UserError(
                f"labels: column '{name}' looks like an identifier ({len(distinct)} different numbers): leave it out"
            )
        if whole and all(identity(v) for v in values):
            return [int(float(v)) for v in values]
        return [numbers.get(v, math.nan) for v in values]
    if len(distinct) > MAX_WORDS or any(len(v) > 32 or re.search(r"\d{4}-\d|\d+[/:]\d+", v) for v in distinct):
        raise UserError(
            f"labels: column '{name}' looks like free text, dates or names ({len(distinct)} different values): labels "
            f"are numbers or at most {MAX_WORDS} different words"
        )
    return [v if v in distinct else None for v in values]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
