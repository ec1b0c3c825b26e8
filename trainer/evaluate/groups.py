"""Subgroups of the test records: by sex, age band, source, or another column of samples.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.evaluate.metrics import Predicted, main_value
from trainer.evaluate.target import items_of
from trainer.evaluate.task import Labelled
from umbra.errors import UserError, near_miss
from umbra.parquet import open_samples

BANDS = (18, 40, 60, 80)
MOST = 20
UNKNOWN = "unknown"


def groups_of(data: Labelled, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The subgroup of each record by each column, text `[n]`; ages in bands. A column with one group is left out.

    Raises `UserError` for a column that does not exist, has several values a record or too many different ones.
    """
    samples = open_samples(data.shards.root, data.shards.manifest)
    for name in columns:
        if name not in samples.names:
            raise UserError(f"by: column '{name}' is not in samples.parquet{near_miss(name, samples.names)}")
        if pa.types.is_nested(samples.schema.field(name).type):
            raise UserError(f"by: column '{name}' has several values a record and makes no subgroups: leave it out")
    table = samples.read(list(columns)) if columns else pa.table({})
    found = {name: _groups(table.column(name).take(pa.array(data.row)), name) for name in columns}
    return {name: words for name, words in found.items() if len(set(words.tolist())) > 1}


def _groups(values: pa.ChunkedArray, name: str) -> np.ndarray:
    cells = [items_of(value) for value in values.to_pylist()]
    words = [
        UNKNOWN if cell is None else band(float(next(iter(cell)))) if name == "age" else next(iter(cell))
        for cell in cells
    ]
    if len(set(words)) > MOST:
        raise UserError(f"by: column '{name}' has {len(set(words))} different values, more than {MOST}: leave it out")
    return np.array(words, dtype=object)


def band(years: float) -> str:
    """The age band of a number of years."""
    below = sum(years >= edge for edge in BANDS)
    edges = (0, *BANDS)
    return f"{edges[below]}-{edges[below + 1] - 1}" if below < len(BANDS) else f"{BANDS[-1]}+"


def scored_groups(
    kind: str, names: list[str], data: Predicted, groups: dict[str, np.ndarray], least: int, count: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{column: {group: records, patients, main figure, low, high, classes}}`; `not_scored` says why there is none."""
    return {
        column: {
            group: _scored(kind, names, data.take(np.flatnonzero(words == group)), least, count, seed)
            for group in sorted(set(words.tolist()))
        }
        for column, words in groups.items()
    }


def _scored(kind: str, names: list[str], part: Predicted, least: int, count: int, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"records": len(part.target), "patients": len(np.unique(part.patient))}
    found = main_value(kind, part, least, count, seed)
    if found is None:
        why = f"fewer than {least} records" if kind == "number" else f"no class has {least} records with and without it"
        return row | {"not_scored": why}
    return row | found | {"classes": [names[k] for k in found["classes"]]}
