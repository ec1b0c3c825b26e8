"""What a build would find in a sample of its records: each is read and checked as a build does, and nothing is kept."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sharding import progress, watchdog
from sharding.options import BuildConfig, fix_of
from sharding.plan import Plan
from sharding.report.signals import TYPICAL_MV
from sharding.shard import Tally, add_row, planned_rows
from sharding.sources import protocol
from sharding.writer import ShardWriter
from umbra.schema import Geometry

RECORDS = 200


class _Measuring(ShardWriter):
    """Measures the peak-to-peak amplitude of each lead of each window, in units."""

    def __init__(self, file: Any, geometry: Geometry) -> None:
        super().__init__(file, geometry, 0)
        self.sizes: list[NDArray[np.int32]] = []

    def add(self, array: NDArray[np.int16], meta: bytes) -> str:
        self.sizes.append(np.ptp(array.astype(np.int32), axis=1))
        return super().add(array, meta)


def described(config: BuildConfig, plan: Plan, tables: Sequence[pa.Table]) -> list[str]:
    """Lines on `RECORDS` of the planned records, evenly spread: kept and rejected windows, flags, amplitudes.

    `tables`: the rows of the plan, one table per shard.
    """
    total = sum(len(table) for table in tables)
    if not total:
        return []
    chosen = np.unique(np.linspace(0, total - 1, min(RECORDS, total)).astype(np.int64))
    rows = planned_rows(pa.concat_tables(tables).take(pa.array(chosen)))
    geometry = Geometry(len(config.leads), config.samples, plan.meta_bytes)
    tally, source = Tally.of(config.leads, config.rate), protocol.module(config.source.format)
    with open(os.devnull, "wb") as nowhere:
        writer = _Measuring(nowhere, geometry)
        with progress.bar(len(rows), "record", "sample") as bar:
            for number, row in enumerate(rows):
                expired = partial("{} {}".format, row["record"], watchdog.HANGS)
                add_row(config, source, writer, tally, number, row, expired)
                bar.update(1)
    rejected = Counter(row[2] for row in tally.rows if row[2])
    head = f"in {len(rows):,} of {total:,} records, read as the build reads them:"
    return [head, progress.reasons_table(writer.count, rejected, tally.flags), *_units(config, writer.sizes, rejected)]


def _units(config: BuildConfig, sizes: Sequence[NDArray[np.int32]], rejected: Counter[str]) -> list[str]:
    """The median amplitude, and a question if it is not that of an ECG in millivolts."""
    if not sizes:
        return [f"no window passed{fix_of(rejected)}"]
    millivolts = float(np.median(np.stack(sizes))) * config.resolution_uv / 1000
    low, high = TYPICAL_MV
    line = f"median peak-to-peak amplitude of a lead: {millivolts:.3g} mV ({low:g} to {high:g} mV is typical)"
    if low / 2 <= millivolts <= high * 2:
        return [line]
    known = "the gain in the headers" if config.source.format in ("wfdb", "clinical") else "source.array.units"
    return [f"{line}: is {known} right?"]
