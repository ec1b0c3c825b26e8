"""Windows of equal signal: one recording that stands in a data set under two ids, or in two parts of a joined one.

`private/equal_signals.parquet` has one row a window under different patients: record, key, patient and the check sum of
the signal. `private/contradictions.parquet` of a joined set has one row a cell of a kept window (record, key, column,
kept) that a dropped copy of it contradicts (dropped).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from umbra.files import atomic
from umbra.parquet import AGAIN, Table
from umbra.schema import PRIVATE, SAMPLES

FILE = "equal_signals.parquet"
CONTRADICTIONS = "contradictions.parquet"
UNKNOWN = np.int64(-1)
UNLIKE_COLUMNS = ("column", "kept", "dropped")
UNLIKE = pa.list_(pa.struct({name: pa.string() for name in UNLIKE_COLUMNS}))


@dataclass(frozen=True)
class Unlike:
    """A cell in which a kept window and a dropped copy of it say different things, as text."""

    column: str
    kept: str
    dropped: str


def checksum(units: NDArray[np.int16]) -> int:
    """63 bits, CRC-32 and Adler-32, of a window's int16 units: among 10 million windows none is equal by chance."""
    data = units.tobytes()
    return zlib.crc32(data) << 31 ^ zlib.adler32(data)


def of_two_patients(signals: NDArray[np.int64], patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the windows whose signal another patient has as well, those of one signal together."""
    order = np.lexsort((patients, signals))
    same = (signals[order][1:] == signals[order][:-1]) & (signals[order][1:] != UNKNOWN)
    group = np.concatenate([[0], np.cumsum(~same)]).astype(np.int64)[: len(order)]
    other = same & (patients[order][1:] != patients[order][:-1])
    return order[np.isin(group, group[1:][other])]


def write(output: Path, signals: NDArray[np.int64], patients: NDArray[np.int64]) -> None:
    """Writes the list of a data set whose tables are written; `signals` and `patients` by row of `samples.parquet`."""
    rows = of_two_patients(signals, patients)
    keys = (
        Table(output / SAMPLES, AGAIN).read(["key"]).column("key").take(rows)
        if len(rows)
        else pa.array([], pa.string())
    )
    record = _records(output, keys)
    table = {"record": record, "key": keys, "patient": patients[rows], "signal": signals[rows]}
    with atomic(output / PRIVATE / FILE) as path:
        pq.write_table(pa.table(table), path)


def write_unlike(output: Path, cells: Sequence[tuple[str, Unlike]]) -> None:
    """Writes the list of cells that contradict, each with its window's key."""
    keys = pa.array([key for key, _ in cells], pa.string())
    columns = {name: pa.array([getattr(cell, name) for _, cell in cells], pa.string()) for name in UNLIKE_COLUMNS}
    with atomic(output / PRIVATE / CONTRADICTIONS) as path:
        pq.write_table(pa.table({"record": _records(output, keys), "key": keys} | columns), path)


def _records(output: Path, keys: Any) -> pa.Array:
    """The records' names of some samples, by their keys."""
    name: dict[str, str] = {}
    if len(keys):
        for batch in Table(output / PRIVATE / "records.parquet", AGAIN).batches(["record", "key"]):
            found = batch.filter(pc.is_in(batch.column("key"), pa.array(keys.to_pylist(), pa.string())))
            name.update(zip(found.column("key").to_pylist(), found.column("record").to_pylist()))
    return pa.array([name.get(key) for key in keys.to_pylist()], pa.string())


def count(output: Path) -> dict[str, int]:
    """`records`, `windows` and `patients` of the list; empty where there is none, or it is empty."""
    path = output / PRIVATE / FILE
    table = Table(path, AGAIN).read() if path.is_file() else pa.table({"record": []})
    if not len(table):
        return {}
    records, patients = (len(table.column(name).unique()) for name in ("record", "patient"))
    return {"records": records, "windows": len(table), "patients": patients}


def remarks(output: Path) -> list[str]:
    """Lines on what was found, if anything."""
    lines = []
    if found := count(output):
        lines.append(
            f"{found['records']:,} records of {found['patients']:,} patients hold a signal that another patient has "
            f"too: is a recording there under two ids, and so in two splits? private/{FILE} lists them"
        )
    path = output / PRIVATE / CONTRADICTIONS
    if path.is_file() and (cells := Table(path, AGAIN).rows):
        lines.append(
            f"{cells:,} cells (labels, age, sex, codes) of windows that stand in several parts contradict each other: "
            f"that of the kept window stays, private/{CONTRADICTIONS} lists both"
        )
    return lines
