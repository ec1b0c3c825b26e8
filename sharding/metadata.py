"""The table that comes with a data set: its records, and their patient, age, sex, codes, split and labels."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sharding.deidentify import identity
from sharding.vocabulary import SCP
from umbra.config import setting
from umbra.errors import UserError, near_miss

MAX_WORDS = 50
MAX_NUMBER = 1e6  # larger whole numbers are dates or identifiers
KNOWN_TABLES = {
    "ptbxl_database.csv": "ptbxl",
    "record_list.csv": "mimic",
    "exams.csv": "code15",
    "Diagnostics.xlsx": "chapman",
}
TRUTH = ("true", "false", "yes", "no")
TRUE = ("1", "1.0", "true", "yes", "y", "t")


@dataclass
class TableConfig:
    """Where a data set's table is and what its columns are called."""

    file: list[str] = field(default_factory=list)
    """Names of the table (CSV or xlsx), relative to the input; the first that exists is read (empty: no table)."""
    record: list[str] = setting(["record"])
    """Columns of the record's name; the first that exists is used."""
    record_pattern: str = ""
    """Builds the record's name from several columns, such as `{trace_file}#{exam_id}`."""
    record_low: list[str] = field(default_factory=list)
    """Columns that are tried before `record` if the rate of the shards is at most `low_rate`."""
    low_rate: float = setting(0.0, ">= 0 and <= 20000")
    """The highest rate of the shards, in Hz, at which `record_low` is tried."""
    patient: list[str] = setting(["patient_id"])
    """Columns of the patient's id; the first that exists is used."""
    age: list[str] = setting(["age"])
    """Columns of the age in years; the first that exists is used."""
    sex: list[str] = setting(["sex"])
    """Columns of the sex; the first that exists is used."""
    codes: list[str] = setting(["codes"])
    """Columns of diagnostic codes; all that exist are used."""
    sex_values: dict[str, str] = field(default_factory=dict)
    """Maps the table's values for sex to female or male."""
    code_values: dict[str, str] = field(default_factory=dict)
    """Maps the table's words for diagnoses to codes."""
    code_columns: dict[str, str] = field(default_factory=dict)
    """Maps columns of 0 and 1 to the code that a 1 stands for."""


@dataclass
class Table:
    """The rows as arrays of text: `records` (relative paths without suffix), `words` (kind -> column), `columns`, and
    the names of the `identifying` columns."""

    path: str
    records: pa.Array
    words: dict[str, pa.Array]
    columns: dict[str, pa.Array]
    identifying: set[str]

    def column(self, name: str, key: str) -> pa.Array:
        """A column by name, requested by the config's `key`. Raises `UserError` that suggests the closest name."""
        if name in self.columns:
            return self.columns[name]
        raise UserError(f"{key}: {Path(self.path).name} has no column '{name}'{near_miss(name, self.columns)}")


def read_table(root: Path, config: TableConfig, rate: float) -> Table | None:
    """The first of `config.file` in `root`; None if the config names none. Raises `UserError` if all are missing."""
    path = table_path(root, config)
    if path is None:
        return None
    columns = _columns(path)
    low = config.record_low if rate <= config.low_rate else []
    records, used = _record_names(path, columns, [*low, *config.record], config.record_pattern)
    chosen = {"patient": config.patient, "age": config.age, "sex": config.sex}
    words = {kind: columns[name] for kind, names in chosen.items() if (name := _first(columns, names))}
    if (codes := _codes(path, columns, config)) is not None:
        words["codes"] = codes
    kept = [*used, *low, *config.record, *config.record_low, *config.patient, *config.age, *config.sex]
    names = {name for name in kept if name in columns}
    return Table(str(path), records, words, columns, names)


def table_path(root: Path, config: TableConfig) -> Path | None:
    """The first of `config.file` in `root`; None if the config names none. Raises `UserError` if all are
    missing, and for a known data set whose table the config does not use: without it, a patient's records may end up in
    different splits.
    """
    if not config.file:
        if known := [name for name in KNOWN_TABLES if (root / name).is_file()]:
            raise UserError(
                f"{root / known[0]} is the table of a known data set, which this config does not read: use "
                f"configs/shard/{KNOWN_TABLES[known[0]]}.yaml, or set source.table.file"
            )
        return None
    path = next((root / name for name in config.file if (root / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{root} holds none of {', '.join(config.file)} (source.table.file): is it the data set's top folder?"
        )
    return path


def with_patients(root: Path, config: TableConfig) -> list[str]:
    """The CSV files in `root` that have one of the patient columns."""
    found = []
    for path in sorted(root.glob("*.csv")):
        with contextlib.suppress(OSError), open(path, encoding="utf-8-sig", errors="replace") as file:
            names = {name.strip().strip('"') for name in re.split(r"[,;\t]", file.readline(1 << 16))}
            found += [path.name] * (not names.isdisjoint(config.patient))
    return found


def _columns(path: Path) -> dict[str, pa.Array]:
    """All columns of a CSV or xlsx file as trimmed text (empty for missing cells)."""
    try:
        table = _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_csv(path)
    except (pa.ArrowInvalid, ValueError, KeyError, OSError, SyntaxError) as error:
        if "UTF8" in str(error):
            raise UserError(f"{path} is not UTF-8: save it as UTF-8 (in a spreadsheet: CSV UTF-8)") from error
        raise UserError(f"{path} is not a readable table: {' '.join(str(error).split())[:200]}") from error
    names = [name.strip() for name in table.column_names]
    if twice := {name for name in names if names.count(name) > 1 and name}:
        raise UserError(f"{path} has several columns '{min(twice)}': rename all but one")
    return {n: pc.utf8_trim_whitespace(table.column(i)).combine_chunks() for i, n in enumerate(names)}


def _read_csv(path: Path) -> pa.Table:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    parse = csv.ParseOptions(delimiter=max(",;\t", key=first.count), newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    types = csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
    return csv.read_csv(path, parse_options=parse, convert_options=types)


def _read_xlsx(path: Path) -> pa.Table:
    """The first sheet; its first row names the columns."""
    import zipfile

    from openpyxl import load_workbook

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True))
    except zipfile.BadZipFile as error:
        raise ValueError("not an xlsx file") from error
    if not rows:
        raise ValueError("the first sheet is empty")
    body = [row for row in rows[1:] if any(cell is not None for cell in row)]
    width = len(rows[0])
    body = [(*row, *[None] * width)[:width] for row in body]  # pads short rows
    columns = [["" if row[i] is None else str(row[i]) for row in body] for i in range(width)]
    return pa.table([pa.array(c, pa.string()) for c in columns], names=[str(cell or "") for cell in rows[0]])


def _record_names(
    path: Path, columns: dict[str, pa.Array], names: Sequence[str], pattern: str
) -> tuple[pa.Array, list[str]]:
    """(the records' names, the columns from which they are built)."""
    if not pattern:
        name = _first(columns, names)
        if name is None:
            raise UserError(
                f"source.table.record: {path.name} has no column {', '.join(names)}; it has {', '.join(columns)}"
            )
        pattern = f"{{{name}}}"
    words = re.split(r"\{([^{}]*)\}", pattern)
    if absent := [name for name in words[1::2] if name not in columns]:
        raise UserError(f"source.table.record_pattern: {path.name} has no column '{absent[0]}'; it has {list(columns)}")
    if len(words) == 1:
        raise UserError(f"source.table.record_pattern={pattern} contains no {{column}}")
    parts = [columns[word] if i % 2 else pa.scalar(word) for i, word in enumerate(words)]
    joined = pc.binary_join_element_wise(*parts, "") if len(parts) > 1 else parts[0]
    return plain_names(joined), words[1::2]


def plain_names(names: pa.Array) -> pa.Array:
    """Normalises paths, so that each record has one name."""
    for pattern, plain in ((r"\\", "/"), (r"/(\./)+", "/"), (r"^(\./)+", ""), (r"//+", "/"), (r"\.(hea|dat|mat)$", "")):
        names = pc.replace_substring_regex(names, pattern, plain)
    return names


def unlisted(table: Table, config: TableConfig, found: pa.Array) -> pa.Array:
    """The records `found` in a folder that its table does not name in any name column."""
    columns = (table.columns[name] for name in (*config.record_low, *config.record) if name in table.columns)
    listed = pa.concat_arrays([column.cast(pa.large_string()) for column in (table.records, *columns)])
    ending = {"pattern": r"(?i)\.(npy|npz|csv|txt)(#[0-9]+)?$", "replacement": r"\2"}  # a table may omit it
    bare = (pc.replace_substring_regex(plain_names(names), **ending) for names in (found, listed))
    return found.filter(pc.invert(pc.is_in(*bare)))


def _codes(path: Path, columns: dict[str, pa.Array], config: TableConfig) -> pa.Array | None:
    """The words of all code columns, joined by `;`."""
    parts = [_translated(columns[name], config.code_values) for name in config.codes if name in columns]
    for name, code in config.code_columns.items():
        if name not in columns:
            raise UserError(f"source.table.code_columns: {path.name} has no column '{name}'; it has {list(columns)}")
        true = pc.is_in(pc.utf8_lower(columns[name]), pa.array(TRUE))
        parts.append(pc.if_else(true, pa.scalar(str(code)), pa.scalar("")))
    if not parts:
        return None
    return pc.binary_join_element_wise(*parts, ";") if len(parts) > 1 else parts[0]


def _translated(column: pa.Array, values: dict[str, str]) -> pa.Array:
    if not values:
        return column
    lower = {key.lower(): str(value) for key, value in values.items()}
    encoded = column.dictionary_encode()
    split = (re.split(r"[;,|]", text) for text in encoded.dictionary.to_pylist())

    def translated(word: str) -> str:  # the whole word if known, else each of its parts
        whole = lower.get(word.strip().lower())
        return whole if whole is not None else " ".join(lower.get(part.lower(), part) for part in word.split())

    texts = [";".join(map(translated, words)) for words in split]
    return pa.array(texts, pa.string()).take(encoded.indices)


def _first(columns: dict[str, pa.Array], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def label(table: Table, name: str, vocabulary: Collection[str] = ()) -> pa.Array:
    """A label column as integers, floats (NaN if empty) or words of the vocabulary (null if empty).

    Raises `UserError` for a missing column, an identifying column, integers that look like dates or identifiers,
    and words that are neither in `vocabulary` nor SCP statements nor true or false.
    """
    encoded = table.column(name, "labels").dictionary_encode()
    if name in table.identifying:
        raise UserError(
            f"labels: column '{name}' holds records, patients, ages or sexes and must stay in private/: leave it out"
        )
    texts = encoded.dictionary.to_pylist()
    distinct = {v for v in texts if identity(v)}
    numbers = {v: n for v in distinct if (n := _number(v)) is not None}
    if len(numbers) == len(distinct):
        whole = all(float(n).is_integer() for n in numbers.values())
        most = max(map(abs, numbers.values()), default=0)
        if whole and (len(distinct) > max(MAX_WORDS, len(encoded) // 2) or most >= MAX_NUMBER):
            raise UserError(
                f"labels: column '{name}' looks like an identifier ({len(distinct)} different numbers): leave it out"
            )
        if whole and len(distinct) == len(texts):
            return pa.array([int(float(v)) for v in texts], pa.int64()).take(encoded.indices)
        return pa.array([numbers.get(v, math.nan) for v in texts], pa.float64()).take(encoded.indices)
    if unknown := sorted(v for v in distinct if v not in vocabulary and v not in SCP and v.lower() not in TRUTH):
        raise UserError(
            f"labels: column '{name}' holds {len(unknown)} words that are not allowed, such as '{unknown[0][:20]}': if "
            "they identify nobody, list them in source.vocabulary"
        )
    return pa.array([v if v in distinct else None for v in texts], pa.string()).take(encoded.indices)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
