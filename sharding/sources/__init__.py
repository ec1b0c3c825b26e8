"""The formats that can be read, one file each. A source module has three functions:

`find(root, without) -> list[str]`    names of all records under the folder, sorted; `without` is a subfolder left out
`head(root, record) -> Head`          what the header says, without reading signals
`read(root, record, wanted) -> Recording`   the leads needed for `wanted`, in millivolt

They raise `Rejected` for a record that cannot be used and `OSError` for a file that cannot be read, nothing else.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sharding.config import UserError

FORMATS = {"wfdb": "sharding.sources.wfdb"}


class Rejected(Exception):
    """A record that cannot be used: `reason` is one word of a closed list, `detail` says more and stays private.

    `files` are the record's, as far as its header can be read.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.files: list[str] = []


@dataclass(slots=True)
class Head:
    """What a header says: `rate` in Hz, `samples` per lead, signal names, `files` (relative, the header first), and the
    raw words for patient, age, sex and codes (empty where there are none)."""

    rate: float
    samples: int
    leads: list[str]
    files: list[str]
    words: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Recording:
    """`mv` [leads, samples] float32 with canonical lead names; `flags` are remarks on its quality.

    `missing` and `saturated` [samples] bool: some lead has no value (0 in `mv`), or stands at the converter's limit;
    None where none does.
    """

    mv: NDArray[np.float32]
    leads: list[str]
    rate: float
    missing: NDArray[np.bool_] | None = None
    saturated: NDArray[np.bool_] | None = None
    flags: tuple[str, ...] = ()


def module(name: str) -> ModuleType:
    """The source module of a format. Raises `UserError` naming the known ones."""
    if name not in FORMATS:
        raise UserError(f"source.format={name} is not known; known: {', '.join(sorted(FORMATS))}")
    return importlib.import_module(FORMATS[name])


def contained(root: Path, record: str) -> str:
    """`root/record` as text. Raises `Rejected` for a name that is absolute or climbs with `..` out of the folder."""
    parts = record.replace("\\", "/").split("/")
    if not record or record[0] in "/~" or ".." in parts or "\0" in record or ":" in parts[0]:
        raise Rejected("path", "a name that is absolute or leaves the input folder")
    return os.path.join(root, record)
