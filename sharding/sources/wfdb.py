"""WFDB records: headers (`sources/wfdb_header.py`) and their signal files in formats 16, 24, 32, 61, 80, 160 and 212.

Format of the samples: https://www.physionet.org/physiotools/wag/signal-5.htm.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding import signal
from sharding.sources.protocol import (
    Head,
    Recording,
    Rejected,
    SourceConfig,
    contained,
    files_below,
    read_at,
    refuse_unused,
)
from sharding.sources.wfdb_header import Header, Layout, SignalLine, parse_header, words_of
from umbra import leads as lead_names

MAX_HEADER = 1 << 20
MAX_READ = 1 << 24
MAX_VALUES = 1 << 33
ENDINGS = (".hea",)


@dataclass(frozen=True)
class Format:
    """How samples are stored: `bits` each, as `dtype` (None: packed) minus `offset`, and the extreme values."""

    bits: int
    dtype: str | None
    offset: int
    lowest: int

    @property
    def highest(self) -> int:
        return -self.lowest - 1


# The lowest value of each format marks a missing sample.
FORMATS = {
    "16": Format(16, "<i2", 0, -(1 << 15)),
    "24": Format(24, None, 0, -(1 << 23)),
    "32": Format(32, "<i4", 0, -(1 << 31)),
    "61": Format(16, ">i2", 0, -(1 << 15)),
    "80": Format(8, "u1", 128, -(1 << 7)),
    "160": Format(16, "<u2", 1 << 15, -(1 << 15)),
    "212": Format(12, None, 0, -(1 << 11)),
}


def check(options: SourceConfig) -> None:
    """Raises `UserError` for options of arrays: WFDB needs none."""
    refuse_unused(options)


def find(root: Path, without: str = "", options: SourceConfig | None = None) -> list[str]:
    """Names (relative paths without `.hea`) of all headers under `root`, sorted. See `files_below`.

    An ending with capitals (`.HEA`) stays part of the record's name.
    """
    return sorted(name.removesuffix(".hea") for name in files_below(root, without, ENDINGS))


def _header_file(record: str) -> str:
    ending = record[-4:]
    return record if ending.lower() == ".hea" != ending else f"{record}.hea"


def head(root: Path, record: str, options: SourceConfig | None = None) -> Head:
    """Reads the header; the length is taken from the signal file if the header has none. See `Head`."""
    files = [_header_file(record)]
    try:
        header = _read_header(root, record)
        folder = record.rpartition("/")[0]
        names = list(dict.fromkeys(s.file for s in header.signals))
        files += [f"{folder}/{n}" if folder else n for n in names]
        samples = _length(root, record, header)
    except Rejected as error:
        error.files = files
        raise
    return Head(header.rate, samples, [s.name for s in header.signals], files, words_of(header.comments))


def read(
    root: Path,
    record: str,
    wanted: Sequence[str],
    options: SourceConfig | None = None,
    span: tuple[int, int] | None = None,
) -> Recording:
    """The leads needed for `wanted`, in millivolts; of `span` only, if given (even start, exclusive end)."""
    header = _read_header(root, record)
    names, picked = _picked(tuple([s.name for s in header.signals]), tuple(wanted))
    values, sums = _digital(root, record, header, picked, span or (0, header.samples or _length(root, record, header)))
    lines = [header.signals[row] for row in picked]
    flags = []
    if span is None and any(
        line.checksum is not None and (line.checksum - s) % 65536 for line, s in zip(lines, sums.tolist())
    ):
        flags.append("checksum")
    if not set(wanted) <= set(names):
        flags.append("derived")
    missing = saturated = None
    limits = [FORMATS[line.layout.format].lowest for line in lines]
    extremes = zip(values.min(axis=1).tolist(), values.max(axis=1).tolist(), limits)
    if any(low <= limit + 1 or high >= -limit - 1 for low, high, limit in extremes):
        lowest = np.array(limits)[:, None]
        gap = values == lowest
        missing = gap.any(axis=0)
        saturated = ((values == lowest + 1) | (values == -lowest - 1)).any(axis=0)
    mv = _millivolt(values, lines)
    if missing is not None:
        mv[gap] = 0.0
    return Recording(mv, list(names), header.rate, missing, saturated, tuple(flags))


@lru_cache(maxsize=4096)
def _picked(signals: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(leads, their rows among the signals) needed for `wanted`. Raises `Rejected`."""
    try:
        rows = lead_names.index(signals)
    except ValueError as error:
        raise Rejected("duplicate_lead", str(error)) from error
    if absent := lead_names.missing(rows, wanted):
        raise Rejected("missing_lead", " ".join(absent))
    names = tuple(lead_names.needed(rows, wanted))
    return names, tuple(rows[name] for name in names)


def digital(root: Path, record: str) -> NDArray[np.integer]:
    """All signals of a record as stored, `[signals, samples]`."""
    header = _read_header(root, record)
    span = (0, header.samples or _length(root, record, header))
    return _digital(root, record, header, range(len(header.signals)), span)[0]


def _millivolt(values: NDArray[np.integer], lines: list[SignalLine]) -> NDArray[np.float32]:
    for line in lines:
        if signal.to_millivolt(line.layout.units) is None:
            raise Rejected("units", f"lead {line.name} in '{line.layout.units[:16]}'")
    scale, baseline = _scale(tuple([line.layout for line in lines]))
    if values.dtype.itemsize <= 2 and not baseline.any():
        return values.astype(np.float32) * scale.astype(np.float32)
    return ((values - baseline) * scale).astype(np.float32)


@lru_cache(maxsize=4096)
def _scale(layouts: tuple[Layout, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(millivolts per step, baselines), each `[signals, 1]`, of signals in voltage units."""
    factors = [signal.to_millivolt(layout.units) for layout in layouts]
    scale = np.array([[f / layout.gain] for f, layout in zip(factors, layouts)], np.float64)  # type: ignore[operator]
    return scale, np.array([[layout.baseline] for layout in layouts], np.float64)


def _digital(
    root: Path, record: str, header: Header, rows: Sequence[int], span: tuple[int, int]
) -> tuple[NDArray[np.integer], NDArray[np.int16]]:
    """(samples `[rows, samples]`, the 16 low bits of the sum of each row)."""
    blocks: dict[int, NDArray[np.integer]] = {}
    for first, lines in _by_file(header.signals):
        picked = [row for row in rows if first <= row < first + len(lines)]
        if picked:
            frames = _read_file(root, record, lines, *span)
            if list(rows) == list(range(first, first + len(lines))):
                values = np.ascontiguousarray(frames.T)
                break
            blocks.update((row, frames[:, row - first]) for row in picked)
    else:
        values = np.stack([blocks[row] for row in rows])
    return values, values.sum(axis=1, dtype=np.int16)


def _by_file(signals: list[SignalLine]) -> list[tuple[int, list[SignalLine]]]:
    """(first row, signal lines) of each file; its signals are interleaved and must be on consecutive lines."""
    groups: list[tuple[int, list[SignalLine]]] = []
    row = 0
    for _, lines in groupby(signals, attrgetter("file")):
        groups.append((row, list(lines)))
        row += len(groups[-1][1])
    if len({lines[0].file for _, lines in groups}) < len(groups):
        raise Rejected("header", "the signals of one file are not on consecutive lines")
    return groups


def _read_file(root: Path, record: str, lines: list[SignalLine], first: int, last: int) -> NDArray[np.integer]:
    """The interleaved samples of one signal file, `[last - first, signals in the file]`."""
    form = _format(tuple([line.layout for line in lines]))
    count = (last - first) * len(lines)
    if count > MAX_READ:
        raise Rejected("too_large", f"{last - first} samples of {len(lines)} signals at once")
    size = -(-count * form.bits // 8)
    path = _signal_path(root, record, lines[0].file)
    try:
        data = read_at(path, lines[0].layout.offset + first * len(lines) * form.bits // 8, size)
    except FileNotFoundError as error:
        raise Rejected("missing_file", "signal file") from error
    except PermissionError as error:
        raise Rejected("unreadable", "signal file") from error
    if len(data) < size:
        raise Rejected("truncated", f"{len(data)} of {size} bytes")
    return unpack(data, lines[0].layout.format, count).reshape(last - first, len(lines))


def unpack(data: bytes, form: str, count: int) -> NDArray[np.integer]:
    """The first `count` samples in `data` of a WFDB signal format, as signed integers wide enough for it."""
    layout = FORMATS[form]
    if layout.dtype is not None:
        values = np.frombuffer(data, layout.dtype, count)
        if not layout.offset:
            return values
        return (values.astype(np.int32) - layout.offset).astype(np.int16)
    if form == "212":
        triples = np.frombuffer(data + bytes(-len(data) % 3), np.uint8).reshape(-1, 3).astype(np.int16)
        pairs = np.empty((len(triples), 2), np.int16)
        pairs[:, 0] = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
        pairs[:, 1] = triples[:, 2] | (triples[:, 1] & 0xF0) << 4
        return ((pairs << 4) >> 4).reshape(-1)[:count]
    wide = np.zeros((count, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8, 3 * count).reshape(-1, 3)
    return wide.view("<i4").reshape(-1) >> 8


@lru_cache(maxsize=4096)
def _format(layouts: tuple[Layout, ...]) -> Format:
    """The format of one file's signals. Raises `Rejected` if it is not supported."""
    first = layouts[0]
    if len({(layout.format, layout.offset) for layout in layouts}) > 1:
        raise Rejected("header", "signals of one file with several formats or offsets")
    if first.format not in FORMATS:
        raise Rejected("format", f"signal format {first.format}")
    if any(layout.per_frame != 1 for layout in layouts):
        raise Rejected("frames", "several samples a frame")
    if any(layout.skew for layout in layouts):
        raise Rejected("skew", "signals with skew")
    return FORMATS[first.format]


def _length(root: Path, record: str, header: Header) -> int:
    """Samples per lead, checked against the sizes of the signal files. Raises `Rejected`."""
    lengths = [header.samples] if header.samples else []
    for _, lines in _by_file(header.signals):
        form = _format(tuple([line.layout for line in lines]))
        size = _size(_signal_path(root, record, lines[0].file)) - lines[0].layout.offset
        held = max(size, 0) * 8 // (form.bits * len(lines))
        if header.samples and held < header.samples:
            raise Rejected("truncated", f"{held} of {header.samples} samples")
        lengths.append(held)
    length = lengths[0] if header.samples else min(lengths)
    if length <= 0:
        raise Rejected("empty", "no samples")
    if length * len(header.signals) > MAX_VALUES:
        raise Rejected("too_large", f"{length} samples of {len(header.signals)} signals")
    return length


def _size(path: str) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", "signal file") from error
    except (ValueError, OSError) as error:
        raise Rejected("unreadable", "signal file") from error
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("unreadable", "signal file is not a regular file")
    return status.st_size


def _signal_path(root: Path, record: str, file: str) -> str:
    if "/" in file or "\\" in file or file in ("", ".", "..", "~") or "\0" in file:
        raise Rejected("path", "a signal file name with a folder in it")
    return os.path.join(os.path.dirname(contained(root, record)), file)


def _read_header(root: Path, record: str) -> Header:
    path = _header_file(contained(root, record))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Rejected("unreadable", "header is not a regular file")
        data = read_at(path, 0, 1 << 14)  # few headers are longer, and a large buffer would cost more than the read
        data += read_at(path, len(data), MAX_HEADER + 1 - len(data)) if len(data) == 1 << 14 else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", "header") from error
    except (PermissionError, ValueError, IsADirectoryError) as error:
        raise Rejected("unreadable", "header") from error
    if len(data) > MAX_HEADER:
        raise Rejected("header", "more than a megabyte")
    return parse_header(data.decode("utf-8", "replace"))
