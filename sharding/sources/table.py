"""Arrays of the user: a record is a `.npy`, `.npz`, `.mat`, `.csv` or `.txt` file, or a row (`FILE#ROW`) of a 3-D
`.npy`.

In text files the columns are leads, which the first line may name, with their unit (`II [uV]`) or without it; without
names, the rows may be the leads instead.
"""

from __future__ import annotations

import errno
import lzma
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray
from pyarrow import csv

from sharding import signal, watchdog
from sharding.sources import arrays, matlab
from sharding.sources.arrays import regular_file, usable
from sharding.sources.protocol import (
    ArrayConfig,
    Head,
    Recording,
    Rejected,
    SourceConfig,
    contained,
    files_below,
    refuse_unused,
)
from umbra import leads as lead_names

ENDINGS = (".npy", ".npz", ".csv", ".txt", ".mat")
MAX_TEXT = 1 << 29
MAX_LINE = 1 << 22
_NO_NUMBER = ("", "na", "n/a", "null", "none")
_BROKEN = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
)


def check(options: SourceConfig) -> None:
    """Raises `UserError` for invalid options."""
    refuse_unused(options, "ids", "meta")
    arrays.check_options(options.array, ["rate"])


def find(root: Path, without: str, options: SourceConfig) -> list[str]:
    """Names of all records under `root`, sorted; a `.npy` of three dimensions gives one per row. Tables are left out.

    Raises `UserError` for missing options.
    """
    found = []
    for path in files_below(root, without, ENDINGS):
        if path in options.table.file:
            continue
        watchdog.restart()
        if path.lower().endswith((".npy", ".npz", ".mat")):
            arrays.check_options(options.array, ["leads"])
        found += _rows(root, path)
    return sorted(found)


def head(root: Path, record: str, options: SourceConfig) -> Head:
    """Rate, length and leads, from an array's header or a text's first line and number of lines. See `Head`.

    With `trim`, the length is that before trimming.
    """
    path, row = _located(root, record)
    shape, config = _shape(regular_file(root, path), row, options.array)
    return Head(config.rate, arrays.check_shape(shape, config, config.leads), list(config.leads), [path])


def read(root: Path, record: str, wanted: Sequence[str], options: SourceConfig) -> Recording:
    """The leads needed for `wanted`, in millivolts. See `Recording`."""
    path, row = _located(root, record)
    full = regular_file(root, path)
    shape, config = _shape(full, row, options.array)
    arrays.check_shape(shape, config, config.leads)
    with _as_rejected("format"):
        values = _values(full, row, options.array)
    if values.shape != tuple(shape):
        raise Rejected("format", f"values of shape {values.shape} instead of {tuple(shape)}: blank lines among them?")
    return arrays.recording(values, wanted, config)


def _rows(root: Path, path: str) -> list[str]:
    """The names of a file's records; one that cannot be read is listed too, so that its reason is reported."""
    if not path.lower().endswith(".npy"):
        return [path]
    try:
        shape = _memory_map(regular_file(root, path)).shape
    except (Rejected, OSError):
        return [path]
    return [f"{path}#{row}" for row in range(shape[0])] if len(shape) > 2 else [path]


def _located(root: Path, record: str) -> tuple[str, int | None]:
    """(file, row) of a record's name; the names in a table may omit the file's ending."""
    if record.lower().endswith(ENDINGS):
        return record, None
    match = re.fullmatch(r"(.+)#([0-9]{1,18})", record, re.DOTALL)
    path, row = (match[1], int(match[2])) if match else (record, None)
    if not path.lower().endswith(ENDINGS):
        full = contained(root, path)
        ending = next((ending for ending in ENDINGS if os.path.isfile(full + ending)), None)
        if ending is None:
            raise Rejected("missing_file", f"{path} with none of {', '.join(ENDINGS)}")
        path += ending
    return path, row


def _shape(full: str, row: int | None, options: ArrayConfig) -> tuple[Sequence[int], ArrayConfig]:
    """(shape of the record's array, the options with this file's leads and orientation)."""
    usable(options)
    ending = full[-4:].lower()
    if row is not None and ending != ".npy":
        raise Rejected("shape", f"a row of a {ending} file: only .npy files may hold several records")
    with _as_rejected("header"):
        if ending == ".npy":
            return _record_of(_memory_map(full), row).shape, options
        if ending == ".npz":
            with zipfile.ZipFile(full) as archive, archive.open(_member(archive, options.signals)) as file:
                return _npy_shape(file), options
        if ending == ".mat":
            return matlab.array(full, options.signals).shape, options
        layout = _layout(full, options)
    samples = layout.lines - layout.skip
    own = replace(options, leads=layout.leads, leads_last=layout.leads_last, units=layout.units or options.units)
    return (samples, len(layout.columns)), own


def _values(full: str, row: int | None, options: ArrayConfig) -> NDArray:
    ending = full[-4:].lower()
    if ending == ".npy":
        return _record_of(_memory_map(full), row)
    if ending == ".npz":
        with zipfile.ZipFile(full) as archive, archive.open(_member(archive, options.signals)) as file:
            return npy.read_array(file, allow_pickle=False)
    if ending == ".mat":
        return matlab.array(full, options.signals)
    return _numbers(full, _layout(full, options))


# ---- .npy and .npz ----


def _memory_map(full: str) -> np.memmap:
    """The array of a `.npy` file, memory-mapped. Raises `Rejected`, also for Python objects, which are never loaded."""
    try:
        with _as_rejected("header"), np.errstate(over="ignore"):
            return npy.open_memmap(full, mode="r")
    except Rejected as error:
        reasons = {"objects": "format", "mmap length": "truncated"}
        error.reason = next((reason for text, reason in reasons.items() if text in error.detail), error.reason)
        raise


def _record_of(values: NDArray, row: int | None) -> NDArray:
    if row is None:
        return values
    if values.ndim < 3:
        raise Rejected("shape", f"a row of an array of shape {values.shape}, not three-dimensional")
    if row >= len(values):
        raise Rejected("missing_file", f"row {row} of {len(values)}")
    return values[row]


def _member(archive: zipfile.ZipFile, key: str) -> str:
    """The archive's member that holds the array `key`, or its only one."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if not key and len(names) == 1:
        key = names[0]
    if key not in names:
        asked = f"no array '{key}'" if key else "several arrays and no source.array.signals"
        raise Rejected("format", f"{asked}; the file holds {', '.join(names[:20])}")
    return archive.namelist()[names.index(key)]


def _npy_shape(file: Any) -> tuple[int, ...]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Rejected("format", f"version {version} of the .npy format")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "iuf":
        raise Rejected("format", f"an array of {dtype}, not of real numbers")
    return shape


# ---- .csv and .txt ----


@dataclass(frozen=True)
class _Layout:
    """How to read a text file: `delimiter` (empty: spaces), `fields` per line, and the `columns` to use."""

    delimiter: str
    decimal: str
    skip: int
    lines: int
    fields: int
    columns: list[int]
    leads: list[str]
    leads_last: bool = True
    units: str = ""


def _layout(full: str, options: ArrayConfig) -> _Layout:
    if os.path.getsize(full) > MAX_TEXT:
        raise Rejected("too_large", f"a text file of more than {MAX_TEXT >> 20} MiB")
    with open(full, "rb") as file:
        first, second = (file.readline(MAX_LINE).decode("utf-8-sig", "replace").strip("\r\n") for _ in range(2))
        file.seek(0)
        lines = _lines(file)
    if len(first) >= MAX_LINE - 4:
        raise Rejected("header", "a line that does not end")
    first = first.removeprefix("#").lstrip()  # numpy.savetxt writes its header as a comment
    delimiter = next((mark for mark in ";\t," if mark in first), "")
    decimal = "," if delimiter in (";", "\t") and "," in (second or first) else "."
    words = [word.strip().strip("\"'").strip() for word in (first.split(delimiter) if delimiter else first.split())]
    skip = int(_is_header(words, decimal))
    named = [_name_and_unit(word) for word in words]
    columns = [i for i, (name, _) in enumerate(named) if skip and lead_names.canonical(name)]
    if columns:
        units = {named[i][1] for i in columns}
        if len(units) > 1:
            raise Rejected("units", f"columns in {', '.join(sorted(unit or 'no unit' for unit in units))}")
        names = [named[i][0] for i in columns]
        return _Layout(delimiter, decimal, skip, lines, len(words), columns, names, units=units.pop())
    if not options.leads:
        raise Rejected("missing_lead", "the first line names no lead, and source.array.leads is not set")
    columns = list(range(int(bool(skip and not words[0])), len(words)))
    turned = len(columns) != len(options.leads) == lines - skip
    return _Layout(delimiter, decimal, skip, lines, len(words), columns, options.leads, not turned)


def _name_and_unit(word: str) -> tuple[str, str]:
    """(name, unit) of a column's title such as `II [uV]` or `aVR (mV)`; the unit is empty if none is stated."""
    match = re.fullmatch(r"(.*?)[\s_]*[\[(]([^\[\]()]+)[\])]", word)
    if not match or signal.to_millivolt(match[2].strip()) is None:
        return word, ""
    return match[1], match[2].strip()


def _is_header(words: list[str], decimal: str) -> bool:
    """Whether a first line is a header: it has a word that is not a number, or is `0,1,2,...` in place of names."""
    numbers = words if words[:1] != [""] else words[1:]
    if len(numbers) > 1 and numbers == [str(i) for i in range(len(numbers))]:
        return True
    return not all(_is_number(word.replace(decimal, ".")) for word in words[:64])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word.lower() in _NO_NUMBER
    return True


def _lines(file: Any) -> int:
    """Lines up to the last one that is not blank."""
    count = pending = started = 0
    while block := file.read(1 << 20):
        body = block.rstrip()
        if body:
            started = 1
            count += pending + body.count(b"\n")
            pending = 0
        pending += block.count(b"\n", len(body))
    return count + started


def _numbers(full: str, layout: _Layout) -> NDArray[np.float64]:
    """The columns of a text file as `[lines, columns]`, NaN for missing values."""
    if not layout.delimiter:
        columns = layout.columns
        return np.loadtxt(full, skiprows=layout.skip, usecols=columns, ndmin=2, encoding="utf-8-sig", comments=None)
    names = [str(i) for i in range(layout.fields)]
    chosen = [str(i) for i in layout.columns]
    table = csv.read_csv(
        full,
        read_options=csv.ReadOptions(
            use_threads=False, block_size=os.path.getsize(full) + 1, skip_rows=layout.skip, column_names=names
        ),
        parse_options=csv.ParseOptions(delimiter=layout.delimiter),
        convert_options=csv.ConvertOptions(
            column_types={name: pa.float64() for name in chosen},
            include_columns=chosen,
            decimal_point=layout.decimal,
        ),
    )
    return np.column_stack([column.to_numpy() for column in table.columns])


@contextmanager
def _as_rejected(reason: str) -> Iterator[None]:
    """Converts the parsers' errors for damaged files to `Rejected`; file system errors stay `OSError`."""
    try:
        yield
    except (*_BROKEN, OSError) as error:
        # wrong offsets in a zip give EINVAL, a damaged bzip2 stream gives no errno
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise Rejected(reason, " ".join(str(error).split())[:200] or type(error).__name__) from error
