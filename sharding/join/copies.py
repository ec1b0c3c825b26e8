"""Equal windows that a patient has in several parts: one is kept, and gets what the others know of it.

Its empty cells (age, sex, labels) are filled from theirs and its codes are united with theirs, in the table and in its
metadata. Where both say something, its own cell stands and the other one is listed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sharding import equal
from sharding.equal import Unlike
from sharding.writer import metadata_bytes

PLACED = (
    "shard",
    "index",
    "key",
    "patient",
    "source",
    "leads",
    "part",
)  # of the copy itself; all other cells are merged
IN_METADATA = ("age", "sex", "codes")
Cells = dict[str, Any]
Read = Callable[[int], tuple[NDArray[np.int16], bytes]]


@dataclass
class Copies:
    """`dropped`: rows that are left out; of kept rows: their `cells` and `metadata` as they become, and the cells in
    which a dropped row says something else (`unlike`)."""

    dropped: set[int] = field(default_factory=set)
    cells: dict[int, Cells] = field(default_factory=dict)
    metadata: dict[int, bytes] = field(default_factory=dict)
    unlike: dict[int, list[Unlike]] = field(default_factory=dict)


def find(rows: pa.Table, here: tuple[int, int], read: Read, size: int) -> Copies:
    """The copies among the `rows` of a joined shard. A row of the part and shard `here` is never dropped.

    `read(row)`: its int16 array and metadata; only patients with rows from elsewhere are read. `size`: bytes that a
    sample's metadata may have.
    """
    where = list(zip(rows.column("part").to_pylist(), rows.column("shard").to_pylist()))
    patients = rows.column("patient").to_pylist()
    came = {patient for patient, place in zip(patients, where) if place != here}
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, patient in enumerate(patients):
        if patient in came:
            groups[patient, equal.checksum(read(row)[0])].append(row)
    copies = Copies()
    for group in groups.values():
        dropped = [row for row in group[1:] if where[row] != here]
        copies.dropped.update(dropped)
        for row in group if dropped else ():
            if row not in dropped:
                cells, others = _cells(rows, row), [_cells(rows, other) for other in dropped]
                _take(copies, row, cells, others, read(row)[1], size)
    return copies


def _cells(rows: pa.Table, row: int) -> Cells:
    return {name: rows.column(name)[row].as_py() for name in rows.column_names if name not in PLACED}


def _take(copies: Copies, row: int, own: Cells, others: Sequence[Cells], metadata: bytes, size: int) -> None:
    cells, unlike = merged(own, others)
    text = _metadata(metadata, cells, size)
    if text is None:  # too many codes: what the metadata repeats stays as it is
        cells, unlike = merged(own, [other | {name: own[name] for name in IN_METADATA} for other in others])
        left_out = ((name, other[name]) for other in others for name in IN_METADATA if other[name] != own[name])
        unlike += [Unlike(name, _text(own[name]), _text(value)) for name, value in left_out if not _empty(value)]
        text = metadata.ljust(size)
    copies.cells[row], copies.unlike[row], copies.metadata[row] = cells, unlike, text


def merged(own: Cells, others: Sequence[Cells]) -> tuple[Cells, list[Unlike]]:
    """(the cells `own`, empty ones filled from `others` in turn and all codes united; the cells that contradict)."""
    cells, unlike = dict(own), []
    for other in others:
        for name, value in other.items():
            if name == "codes":
                cells[name] = list(dict.fromkeys([*(cells[name] or []), *(value or [])])) if value else cells[name]
            elif _empty(cells[name]):
                cells[name] = value
            elif not _empty(value) and value != cells[name]:
                unlike.append(Unlike(name, _text(cells[name]), _text(value)))
    return cells, unlike


def _empty(value: Any) -> bool:
    return value is None or value != value


def _text(value: Any) -> str:
    return ";".join(value) if isinstance(value, list) else str(value)


def _metadata(metadata: bytes, cells: Cells, size: int) -> bytes | None:
    """A sample's metadata with the cells that it repeats; as it was where none has changed, None if it is too long."""
    before = json.loads(metadata)
    values = {name: None if _empty(cells[name]) else cells[name] for name in IN_METADATA if name in before}
    return metadata if before == before | values else metadata_bytes(before | values, size)


def changed(rows: pa.Table, cells: Mapping[int, Cells]) -> pa.Table:
    """`rows` with these cells."""
    columns = {name: rows.column(name) for name in rows.column_names}
    for name in columns if cells else ():
        if name not in PLACED:
            values = columns[name].to_pylist()
            for row, of_row in cells.items():
                values[row] = of_row[name]
            columns[name] = pa.array(values, columns[name].type)
    return pa.table(columns)
