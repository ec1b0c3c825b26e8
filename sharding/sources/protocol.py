"""The interface of a source: a module of this folder that reads one format, registered in `FORMATS`.

A record in a file of several is named `FILE#ID`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sharding import signal, watchdog
from sharding.metadata import TableConfig
from umbra.config import setting
from umbra.errors import UserError, near_miss

# Format -> the module that reads it, imported when it is used.
FORMATS: dict[str, str] = {
    "wfdb": "sharding.sources.wfdb",
    "hdf5": "sharding.sources.hdf5",
    "table": "sharding.sources.table",
    "tars": "sharding.sources.tars",
    "clinical": "sharding.sources.clinical",
}


@dataclass
class ArrayConfig:
    """What a bare array (HDF5, NumPy, CSV, tar member) does not state itself."""

    rate: float = setting(0.0, f">= 0 and <= {signal.RATES[1]:g}", allowed=f"0, or {signal.IN_RATES}")
    """Sampling rate in Hz (0: not given)."""
    leads: list[str] = field(default_factory=list)
    """The array's leads in order (a CSV may name them itself)."""
    units: str = setting("mV", allowed="mV, uV, nV, V or a number > 0 and < 1e9")
    """Unit of the array: mV, uV, nV, V or, as a number, millivolts per unit."""
    leads_last: bool = False
    """Whether the array is `[samples, leads]` instead of `[leads, samples]`."""
    trim: bool = False
    """Whether zeros in all leads at both ends are padding and are trimmed."""
    bits: int = setting(0, ">= 0 and <= 32")
    """Bits of the A/D converter whose samples an integer array holds, if they are fewer than the array's: `saturated`
    and `at_limit` are judged at its limits (0: those of the array's type)."""
    signals: str = ""
    """The HDF5 dataset, npz key or file ending in a tar that holds the array."""
    ids: str = ""
    """The HDF5 dataset of the records' ids (empty: the row numbers)."""
    meta: str = ""
    """The ending of a tar's JSON member."""


@dataclass
class SourceConfig:
    """The data set that is read."""

    name: str = "wfdb"
    """The data set's name, part of every pseudonym and public: 1 to 40 letters, digits, - and _."""
    format: str = setting("wfdb", allowed=", ".join(FORMATS))
    """The format of the recordings; a module of sharding/sources reads it."""
    public: bool = False
    """Whether the recordings are public, so that no pseudonym key is needed."""
    parts: dict[str, str] = field(default_factory=dict)
    """Maps folder names to names of sources (sites, data sets): a record below such a folder is of that source, any
    other of `name`."""
    patient_pattern: str = ""
    """A regular expression with one group that extracts the patient's id from a record's path relative to the input
    (without `.hea`; `FILE#ID` in a file of many): `^([^/]+)/` takes the first folder. It takes precedence
    over the table and the header where it matches (empty: not used)."""
    vocabulary: list[str] = field(default_factory=list)
    """Codes and words that are allowed outside `private/` besides those of sharding/vocabulary.py (CinC's SNOMED CT
    concepts, PTB-XL's statements)."""
    table: TableConfig = field(default_factory=TableConfig)
    """The table that comes with the data set."""
    array: ArrayConfig = field(default_factory=ArrayConfig)
    """What the data set's bare arrays do not state themselves; a key that the format does not use is refused."""


class Rejected(Exception):
    """A record that cannot be used: `reason` is from a closed list, `detail` says more and stays private.

    `files`: the record's files, as far as its header can be read (empty: the file in its name).
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.files: list[str] = []


class Segment(NamedTuple):
    """Samples `first` to `last` (exclusive) of a record, and the names of the signals present in them."""

    first: int
    last: int
    leads: tuple[str, ...]


@dataclass(slots=True)
class Head:
    """Contents of a header: `rate` in Hz, `samples` per lead, signal names, `files` (relative, the header first), and
    the raw words for patient, age, sex and codes (only those present).

    `segments`: of a multi-segment record, in order, with gaps between them (empty: all leads are present throughout).
    `reader`: the reader of the samples, if the source has several.
    """

    rate: float
    samples: int
    leads: list[str]
    files: list[str]
    words: dict[str, str] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    reader: str = ""


@dataclass(slots=True)
class Recording:
    """`mv` [leads, samples] float32 with canonical lead names; `flags` describe its quality.

    `missing`, `saturated` and `at_limit` [samples] bool: some lead has no value (0 in `mv`), stays at a limit of its
    converter, or is at one (see `sharding.saturation`); None where none does.
    """

    mv: NDArray[np.float32]
    leads: list[str]
    rate: float
    missing: NDArray[np.bool_] | None = None
    saturated: NDArray[np.bool_] | None = None
    flags: tuple[str, ...] = ()
    at_limit: NDArray[np.bool_] | None = None


class Source(Protocol):
    """A module that reads one format; `options` is the config's `source`.

    The functions raise `Rejected` for a record that cannot be used and `OSError` for a file that cannot be read.
    """

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """The endings of its files, in lower case."""
        ...

    def check(self, options: SourceConfig) -> None:
        """Raises `UserError` for invalid options or missing packages."""
        ...

    def find(self, root: Path, without: str, options: SourceConfig) -> list[str]:
        """Names of all records under the folder, sorted; `without`: a subfolder to skip.

        Raises `UserError` for options that fit no file.
        """
        ...

    def head(self, root: Path, record: str, options: SourceConfig) -> Head:
        """Reads the header, but not the signals."""
        ...

    def read(self, root: Path, record: str, wanted: Sequence[str], options: SourceConfig) -> Recording:
        """The leads needed for `wanted`, in millivolts."""
        ...


@runtime_checkable
class PiecewiseSource(Source, Protocol):
    """A source that can read parts of a record: one of more than `MAX_READ` values is read in pieces."""

    @property
    def MAX_READ(self) -> int: ...

    def read(
        self,
        root: Path,
        record: str,
        wanted: Sequence[str],
        options: SourceConfig,
        span: tuple[int, int] | None = None,
    ) -> Recording:
        """The leads needed for `wanted`; of the samples `span[0]` to `span[1]` (exclusive) if given."""
        ...


def module(name: str) -> Source:
    """The source module of a format. Raises `UserError` naming the known ones."""
    if name not in FORMATS:
        raise UserError(f"source.format={name} is unknown{near_miss(name, FORMATS)}")
    return cast(Source, importlib.import_module(FORMATS[name]))


def refuse_unused(options: SourceConfig, *unused: str) -> None:
    """Raises `UserError` for a key of `source.array` that is set although the format ignores it (none named: all)."""
    for name in unused or [f.name for f in fields(ArrayConfig)]:
        if getattr(options.array, name) != getattr(ArrayConfig(), name):
            raise UserError(f"source.array.{name} has no effect with source.format={options.format}: leave it out")


def files_below(root: Path, without: str, endings: tuple[str, ...]) -> list[str]:
    """Names (relative paths) of all files under `root` with one of the endings (lower case), ignoring case, sorted.

    Symlinks to folders are followed, each folder once; the subfolder `without` (relative) is skipped.
    """
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        watchdog.restart()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        prefix = os.path.relpath(folder, root)
        prefix = "" if prefix == "." else prefix + "/"
        folders[:] = sorted(name for name in folders if not without or prefix + name != without)
        found += [prefix + name for name in files if name.lower().endswith(endings)]
    return sorted(found)


def contained(root: Path, record: str) -> str:
    """`root/record` as text. Raises `Rejected` for a name that is absolute or leaves the folder by `..`."""
    odd = not record or record[0] in "/~" or "\0" in record
    if not odd and (".." in record or ":" in record):
        parts = record.replace("\\", "/").split("/")
        odd = ".." in parts or ":" in parts[0]
    if odd:
        raise Rejected("path", "a name that is absolute or leaves the input folder")
    return f"{root}/{record}"


def read_at(path: str, offset: int, size: int) -> bytes:
    """Up to `size` bytes of a file from `offset`, unbuffered: most files are read once and whole."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, left = [], size
        while left and (part := os.pread(handle, left, offset + size - left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(handle)
