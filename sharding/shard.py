"""Builds one planned shard: reads and checks its records, cuts them into windows and writes those.

A shard is a tar, a table of its windows and a stats file, written in this order: without stats it is not finished.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sharding import build_state, equal, headers, signal, watchdog
from sharding import plan as planning
from sharding.options import BuildConfig
from sharding.plan import ShardPlan
from sharding.sources import protocol
from sharding.writer import ShardWriter, metadata_bytes
from umbra import leads, signal_fingerprints
from umbra.errors import UserError
from umbra.files import atomic, write_text
from umbra.schema import Geometry
from umbra.signal_fingerprints import Gathered

# The columns of the plan that a build reads.
ROW_COLUMNS = (
    *("record", "patient", "age", "sex", "codes", "part", "leads", "stretches", "files", "bytes", "stamp"),
    "windows",
)
WINDOW_COLUMNS = ("row", "window", "reason", "detail", "key", "signal")  # the last a check sum (`equal`)
Row = tuple[int, int | None, str, str, str | None, int | None]


@dataclass
class Tally:
    """Running totals of a shard: exact sums of the int16 units, fingerprints of the signals, one row per window, and
    flags."""

    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    counts: NDArray[np.int64]
    fingerprints: Gathered
    rows: list[Row] = field(default_factory=list)
    flags: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, leads: Sequence[str], rate: float) -> Tally:
        sums, squares, counts = np.zeros((3, len(leads)), np.int64)
        return cls(sums, squares, counts, Gathered(leads, rate))

    def reject(self, row: int, window: int | None, reason: str, detail: str) -> None:
        self.rows.append((row, window, reason, detail, None, None))

    def keep(
        self, row: int, window: int, key: str, units: NDArray[np.int16], samples: NDArray[np.int64], detail: str
    ) -> None:
        """`samples` [leads]: number of recorded samples of each lead (the others are zero-filled)."""
        self.rows.append((row, window, "", detail, key, equal.checksum(units)))
        self.fingerprints.add(units)
        self.counts += samples
        self.sums += units.sum(axis=1, dtype=np.int64)
        self.squares += np.square(units, dtype=np.int32).sum(axis=1, dtype=np.int64)


def build_shard(config: BuildConfig, meta_bytes: int, shard: ShardPlan, tick: Any = None) -> None:
    """Reads, checks and writes one planned shard: tar, rows, then stats. Calls `tick(1)` after each record.

    Raises `UserError` if an input file that existed at planning cannot be read any more.
    """
    output = Path(config.output)
    started = time.time()
    try:
        tally, shard_hash, count, geometry = _write_shard(config, meta_bytes, shard, tick)
    except UserError as error:
        with contextlib.suppress(OSError, UserError):
            write_text(build_state.failure_path(output, shard.name), f"{error}\n")
        raise
    write_rows(output, shard, tally.rows)
    write_stats(output, shard, tally, count, shard_hash, geometry, started)


def write_stats(
    output: Path, shard: ShardPlan, tally: Tally, count: int, shard_hash: str, geometry: Geometry, started: float
) -> None:
    """The fingerprints of its signals, then what a finished shard holds. Without the latter it is not finished."""
    if count:
        signal_fingerprints.write(output, shard.name, shard_hash, tally.fingerprints.all(), tally.fingerprints.leads)
    stats = {
        "name": shard.name,
        "samples": count,
        "bytes": geometry.shard_bytes(count) if count else 0,
        "sha256": shard_hash,
        "sums": tally.sums.tolist(),
        "squares": tally.squares.tolist(),
        "counts": tally.counts.tolist(),
        "rejected": dict(sorted(Counter(row[2] for row in tally.rows if row[2]).items())),
        "flags": dict(sorted(tally.flags.items())),
        "started": started,
        "seconds": time.time() - started,
    }
    write_text(build_state.stats_path(output, shard.name), json.dumps(stats) + "\n")
    build_state.failure_path(output, shard.name).unlink(missing_ok=True)


def write_rows(output: Path, shard: ShardPlan, rows: Sequence[Row]) -> None:
    """Writes the outcome of each window of a shard, for `finish`."""
    types = (pa.int32(), pa.int32(), pa.string(), pa.string(), pa.string(), pa.int64())
    columns = (pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types))
    with atomic(build_state.rows_path(output, shard.name)) as path:
        pq.write_table(pa.table(dict(zip(WINDOW_COLUMNS, columns))), path)


def _write_shard(config: BuildConfig, meta_bytes: int, shard: ShardPlan, tick: Any) -> tuple[Tally, str, int, Geometry]:
    output = Path(config.output)
    source = protocol.module(config.source.format)
    geometry = Geometry(len(config.leads), config.samples, meta_bytes)
    tally = Tally.of(config.leads, config.rate)
    rows = planned_rows(planning.rows_of_shard(output, shard.ordinal, ROW_COLUMNS))
    with atomic(output / shard.name) as path:
        with open(path, "wb", buffering=1 << 20) as file:
            writer = ShardWriter(file, geometry, shard.ordinal)
            for number, row in enumerate(rows):
                add_row(config, source, writer, tally, number, row, partial(_hangs, config, shard, row["record"]))
                if tick is not None:
                    tick(1)
            shard_hash = writer.close()
    if not writer.count:
        (output / shard.name).unlink()
    return tally, shard_hash, writer.count, geometry


def planned_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a plan, each with `ROW_COLUMNS`."""
    return [dict(zip(ROW_COLUMNS, row)) for row in zip(*(planning.values(table.column(c)) for c in ROW_COLUMNS))]


def add_row(
    config: BuildConfig,
    source: protocol.Source,
    writer: ShardWriter,
    tally: Tally,
    number: int,
    row: dict[str, Any],
    expired: Callable[[], str],
) -> None:
    """Reads the record of plan row `number` and writes or rejects its windows; `expired()`: the message if it hangs."""
    try:
        for piece in _pieces(source, config, row, expired):
            with watchdog.limit(config.timeout, expired):
                recording = _read(source, config, row, piece)
            _add_record(config, writer, tally, number, row, recording, piece)
    except protocol.Rejected as error:
        tally.reject(number, None, error.reason, error.detail)


def _hangs(config: BuildConfig, shard: ShardPlan, record: str) -> str:
    """Records that reading a record timed out; returns the message."""
    line = f"{record} {watchdog.HANGS}"
    write_text(build_state.failure_path(Path(config.output), shard.name), f"{line}\n")
    return line


class Piece(NamedTuple):
    """Windows `first` to `last` (exclusive) of a record. `span`: the source samples to read, with a margin (None: the
    whole record); `start`: where `span` begins, in samples at the target rate.

    Each stretch of a record has its own grid of windows: `base` is its first window, `origin` its first source sample,
    from which `start` counts.
    """

    first: int
    last: int
    span: tuple[int, int] | None = None
    start: int = 0
    base: int = 0
    origin: int = 0


def _pieces(
    source: protocol.Source, config: BuildConfig, row: dict[str, Any], expired: Callable[[], str]
) -> list[Piece]:
    """The record as one piece, or one piece per stretch of the plan; a stretch that is too long to be read at once as
    several, with margins for the filters."""
    if not row["stretches"] or not isinstance(source, protocol.PiecewiseSource):
        return [Piece(0, row["windows"])]
    with watchdog.limit(config.timeout, expired):
        head = source.head(Path(config.input), row["record"], config.source)
    pieces: list[Piece] = []
    base = 0
    for words in row["stretches"].split():
        origin, end = map(int, words.split("-"))
        planned = headers.planned_windows(end - origin, head.rate, config.rate, config.samples, config.min_seconds)
        last = min(base + planned, row["windows"])
        stretch = Piece(base, last, (origin, end), 0, base, origin)
        if (end - origin) * len(head.leads) > source.MAX_READ:
            pieces += _pieces_of_stretch(config, head, source.MAX_READ, stretch)
        elif base < last:
            pieces.append(stretch)
        base = last
    return pieces


def _pieces_of_stretch(config: BuildConfig, head: protocol.Head, most: int, stretch: Piece) -> list[Piece]:
    """Splits a stretch of more than `most` values into pieces with margins for the filters."""
    assert stretch.span is not None
    up, down = signal.ratio(head.rate, config.rate)
    around = signal.PERIODS * max(up, down) // up + round(10 * head.rate / config.high_pass if config.high_pass else 0)
    windows = max(most // 4 // len(head.leads) * up // (config.samples * down), 1)
    samples, pieces = stretch.span[1] - stretch.origin, []
    for first in range(stretch.first, stretch.last, windows):
        last = min(first + windows, stretch.last)
        begin = signal.span(first - stretch.base, config.samples, head.rate, config.rate)[0]
        begin = max(begin - around, 0) // (2 * down) * 2 * down
        end = min(-(-(last - stretch.base) * config.samples * down // up) + around, samples)
        span = (stretch.origin + begin, stretch.origin + end)
        pieces.append(stretch._replace(first=first, last=last, span=span, start=begin // down * up))
    return pieces


def _read(source: protocol.Source, config: BuildConfig, row: dict[str, Any], piece: Piece) -> protocol.Recording:
    """Reads a record's signals. Raises `UserError` if its files have changed since planning."""
    root, record = Path(config.input), row["record"]
    before = (row["bytes"], row["stamp"])
    if (now := headers.stamp(root, record, row["files"])) != before:
        what = "has vanished from the input" if now[0] < 0 <= before[0] else "has changed"
        raise UserError(f"{record} {what} since the plan was made")
    try:
        wanted = row["leads"].split()
        if piece.span is not None and isinstance(source, protocol.PiecewiseSource):
            return source.read(root, record, wanted, config.source, piece.span)
        return source.read(root, record, wanted, config.source)
    except protocol.Rejected as error:
        if error.reason != "missing_file":
            raise
        raise UserError(f"{record} has vanished from the input since the plan was made") from error
    except OSError as error:
        raise UserError(f"{record} cannot be read now: {error.strerror}") from error


def _add_record(
    config: BuildConfig,
    writer: ShardWriter,
    tally: Tally,
    number: int,
    row: dict[str, Any],
    recording: protocol.Recording,
    piece: Piece,
) -> None:
    """Cuts a recording, or a piece, into its planned windows; writes the good ones, records why others are rejected."""
    x, present = _prepared(config, row, recording)
    flags, real = recording.flags, min(x.shape[1], config.samples)
    if 0 < x.shape[1] < config.samples and 0 < config.min_seconds <= x.shape[1] / config.rate:
        x = np.pad(x, ((0, 0), (0, config.samples - x.shape[1])))
        flags = (*flags, "padded")
    meta = metadata_bytes(_metadata(config, row, recording.rate, flags), writer.geometry.meta_bytes)
    there = slice(None) if present.all() else present
    for window in range(piece.first, piece.last):
        begin = (window - piece.base) * config.samples - piece.start
        part = x[:, begin : begin + config.samples]
        reason, detail = _raw_reason(config, recording, window, piece)
        if part.shape[1] < config.samples:
            reason, detail = "short", f"{x.shape[1] / config.rate:.4g} s"
        units = None
        if not reason:
            units, reason, detail = signal.to_units(part, part[there, :real], config.resolution_uv)
        if units is None or meta is None:
            tally.reject(number, window, reason or "metadata", detail)
        else:
            remarks = _remarks(config, recording, window, piece)
            tally.keep(number, window, writer.add(units, meta), units, present * real, "; ".join(remarks.values()))
            tally.flags.update((*flags, *remarks))


def _prepared(
    config: BuildConfig, row: dict[str, Any], recording: protocol.Recording
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(signals `[leads, samples]` in mV at the target rate, mask of the leads present; missing leads are zeros)."""
    x = recording.mv
    if recording.missing is not None:
        x = signal.bridged(x, recording.missing)
    if config.high_pass:
        x = signal.high_pass(x, recording.rate, config.high_pass)
    x = signal.resample(x, recording.rate, config.rate)
    there = row["leads"].split()
    x = leads.arrange(x, recording.leads, there)
    present = np.array([lead in there for lead in config.leads])
    if present.all():
        return x, present
    out = np.zeros((len(config.leads), x.shape[1]), np.float32)
    out[present] = x
    return out, present


def _raw_reason(config: BuildConfig, recording: protocol.Recording, window: int, piece: Piece) -> tuple[str, str]:
    if recording.missing is None and recording.saturated is None:
        return "", ""
    seen = _recorded(config, recording, window, piece)
    if recording.missing is not None and (gaps := int(recording.missing[seen].sum())):
        return "nan", f"{gaps} samples missing"
    if recording.saturated is not None and (limits := int(recording.saturated[seen].sum())):
        return "saturated", f"a lead stays at the converter's limits, {limits} samples"
    return "", ""


def _remarks(config: BuildConfig, recording: protocol.Recording, window: int, piece: Piece) -> dict[str, str]:
    """The flags of a kept window beside its recording's, and what each says."""
    seen, out = _recorded(config, recording, window, piece), {}
    if recording.at_limit is not None and (limits := int(recording.at_limit[seen].sum())):
        out["at_limit"] = f"{limits} samples at the converter's limits"
    if still := signal.still_ends(recording.mv[:, seen], recording.rate):
        out["still_ends"] = still
    return out


def _recorded(config: BuildConfig, recording: protocol.Recording, window: int, piece: Piece) -> slice:
    """The samples of a recording, or a piece, that a window is made of."""
    begin = piece.span[0] - piece.origin if piece.span else 0
    first, last = signal.span(window - piece.base, config.samples, recording.rate, config.rate)
    return slice(first - begin, last - begin)


def _metadata(config: BuildConfig, row: dict[str, Any], rate: float, flags: Sequence[str]) -> dict[str, Any]:
    age, there = row["age"], row["leads"].split()
    meta = {
        "source": row["part"],
        "patient": row["patient"],
        "age": None if age != age else age,
        "sex": row["sex"],
        "codes": row["codes"].split(";") if row["codes"] else [],
        "rate": rate,
        "flags": list(flags),
    }
    return meta if len(there) == len(config.leads) else {**meta, "leads": there}
