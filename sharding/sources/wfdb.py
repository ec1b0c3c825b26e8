"""WFDB records, of one segment or many: headers (`wfdb_header`) and signals (`wfdb_signals`)."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharding import signal
from sharding.sources import wfdb_signals
from sharding.sources.protocol import (
    Head,
    Recording,
    Rejected,
    Segment,
    SourceConfig,
    contained,
    files_below,
    read_at,
    refuse_unused,
)
from sharding.sources.wfdb_formats import FAST, LIBRARY
from sharding.sources.wfdb_header import Header, common_per_frame, parse_header, words_of
from sharding.sources.wfdb_signals import MAX_READ as MAX_READ
from sharding.sources.wfdb_signals import MAX_VALUES
from umbra import leads as lead_names

MAX_HEADER = 1 << 20
ENDINGS = (".hea",)
GAP = "~"
LOST = ("missing_file", "unreadable", "truncated")  # reasons that make a gap of a segment


class Part(NamedTuple):
    """A segment of a record: its own name and header, and its first frame in the record."""

    record: str
    header: Header
    first: int

    @property
    def frames(self) -> int:
        return self.header.frames or 0


@dataclass
class Joined:
    """A multi-segment record: its `parts` in order, its length in `frames` (those without a part are gaps) and the
    `names` of all signals. `per_frame`: samples per frame that are common to all ECG leads. `lost`: the records of
    the segments that cannot be read, which are gaps."""

    rate: float
    frames: int
    per_frame: int
    names: list[str]
    comments: list[str]
    parts: list[Part]
    lost: list[str]


def check(options: SourceConfig) -> None:
    """Raises `UserError` for options of arrays: WFDB needs none."""
    refuse_unused(options)


def find(root: Path, without: str = "", options: SourceConfig | None = None) -> list[str]:
    """Names (relative paths without `.hea`) of all headers under `root`, sorted. See `files_below`.

    An ending with capitals (`.HEA`) stays part of the record's name.
    """
    return sorted(name.removesuffix(".hea") for name in files_below(root, without, ENDINGS))


def head(root: Path, record: str, options: SourceConfig | None = None) -> Head:
    """Reads the header; the length is taken from the signal file if the header has none. See `Head`.

    If the ECG leads have several samples per frame, the rate is that of these samples (see `common_per_frame`).
    """
    files = [_header_file(record)]
    try:
        header = _read_header(root, record)
        if header.segments:
            return _head_of_segments(root, record, header, files)
        files += wfdb_signals.signal_files(record, header)
        frames = wfdb_signals.length(root, record, header)
        per_frame = common_per_frame(header.signals)
        rate = _checked_rate(header.rate * per_frame)
    except Rejected as error:
        error.files = list(dict.fromkeys(files))
        raise
    names = [line.name for line in header.signals]
    reader = wfdb_signals.reader(header)
    return Head(rate, frames * per_frame, names, files, words_of(header.comments), reader=reader)


def read(
    root: Path,
    record: str,
    wanted: Sequence[str],
    options: SourceConfig | None = None,
    span: tuple[int, int] | None = None,
) -> Recording:
    """The leads needed for `wanted`, in millivolts; of `span` only, if given (exclusive end)."""
    header = _read_header(root, record)
    if header.segments:
        return _read_segments(root, _joined(root, record, header), wanted, span)
    per_frame = common_per_frame(header.signals)
    _checked_rate(header.rate * per_frame)
    return wfdb_signals.recording(root, record, header, per_frame, wanted, span)


def digital(root: Path, record: str) -> list[NDArray[np.integer]]:
    """All samples of each signal of a single-segment record, as stored."""
    return wfdb_signals.digital(root, record, _read_header(root, record))


def _checked_rate(rate: float) -> float:
    low, high = signal.RATES
    if not low <= rate <= high:
        raise Rejected("rate", f"{rate:g} Hz")
    return rate


# ---- several segments ----


def _head_of_segments(root: Path, record: str, header: Header, files: list[str]) -> Head:
    """Reads the headers of all segments and appends their files to `files`. See `Head`."""
    names = dict.fromkeys(_beside(record, name) for name, _ in header.segments if name != GAP)
    files += map(_header_file, names)
    joined = _joined(root, record, header)
    files[1:] = [_header_file(name) for name in names if name not in joined.lost]
    for part in joined.parts:
        files += [file for file in wfdb_signals.signal_files(part.record, part.header) if file not in files]
    n = joined.per_frame
    segments = [
        Segment(part.first * n, (part.first + part.frames) * n, tuple(line.name for line in part.header.signals))
        for part in joined.parts
    ]
    reader = LIBRARY if any(wfdb_signals.reader(part.header) == LIBRARY for part in joined.parts) else FAST
    rate = _checked_rate(joined.rate * n)
    return Head(rate, joined.frames * n, [*joined.names], files, words_of(joined.comments), segments, reader)


def _joined(root: Path, record: str, header: Header) -> Joined:
    """The segments that the header of a multi-segment record names, joined. Raises `Rejected`."""
    times = tuple(_changed(root, _beside(record, name)) for name, _ in header.segments if name != GAP)
    return _join(root, record, header.rate, tuple(header.segments), tuple(header.comments), times)


@lru_cache(maxsize=4)
def _join(
    root: Path,
    record: str,
    rate: float,
    segments: tuple[tuple[str, int], ...],
    comments_of_all: tuple[str, ...],
    times: tuple[int, ...],
) -> Joined:
    """Reads the headers of all segments; cached by their modification `times`, because such a record is read in pieces.

    A first segment without samples is the layout, which names all signals. A segment that cannot be read (`LOST`) is a
    gap, unless none can.
    """
    lost: dict[str, Rejected] = {}
    names: list[str] = []
    comments = [*comments_of_all]
    parts: list[Part] = []
    first = 0
    for number, (name, frames) in enumerate(segments):
        if name == GAP or (number and not frames):
            first += frames
            continue
        try:
            part = _segment(root, _beside(record, name), rate, frames, number)
        except Rejected as error:
            if error.reason not in LOST:
                raise
            lost[_beside(record, name)] = error
            first += frames
            continue
        comments += part.comments
        names += _unknown([line.name for line in part.signals], names)
        if frames:
            parts.append(Part(_beside(record, name), part, first))
        first += frames
    if lost and not parts:
        raise next(iter(lost.values()))
    lines = [line for part in parts for line in part.header.signals]
    if first * max(len(names), 1) * common_per_frame(lines) > MAX_VALUES:
        raise Rejected("too_large", f"{first} samples of {len(names)} signals")
    return Joined(rate, first, common_per_frame(lines), names, comments, parts, [*lost])


def _segment(root: Path, record: str, rate: float, frames: int, number: int) -> Header:
    """The header of a segment whose signal files hold its `frames` (0: a layout). Raises `Rejected`."""
    header = _read_header(root, record)
    if header.segments:
        raise Rejected("multi_segment", f"segment {number + 1} has segments itself")
    if frames:
        header = _fitting(header, rate, frames, number)
        wfdb_signals.length(root, record, header)
    return header


def _changed(root: Path, record: str) -> int:
    """Modification time of a header in ns; -1 if there is none."""
    try:
        return os.stat(_header_file(contained(root, record))).st_mtime_ns
    except (OSError, ValueError):
        return -1


def _beside(record: str, name: str) -> str:
    """The name of a segment in, or below, the folder of its record. Raises `Rejected`."""
    if "\\" in name or {"", ".", ".."} & {*name.split("/")}:
        raise Rejected("path", "a segment outside the folder of its record")
    folder, slash, _ = record.rpartition("/")
    return folder + slash + name


def _unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that are not those, or aliases, of `known` signals. Raises `Rejected` if a lead occurs twice."""
    try:
        lead_names.index(names)
    except ValueError as error:
        raise Rejected("duplicate_lead", str(error)) from error
    there = {lead_names.canonical(name) or name for name in known}
    return [name for name in names if (lead_names.canonical(name) or name) not in there]


def _fitting(part: Header, rate: float, frames: int, number: int) -> Header:
    """A segment's header with the length that its record states. Raises `Rejected` if they contradict each other."""
    if not math.isclose(part.rate, rate, rel_tol=1e-6):
        raise Rejected("multi_segment", f"segment {number + 1} of {part.rate:g} Hz in a record of {rate:g} Hz")
    if part.frames and part.frames != frames:
        raise Rejected("header", f"segment {number + 1} has {part.frames} samples, the record says {frames}")
    return replace(part, frames=frames)


def _read_segments(root: Path, joined: Joined, wanted: Sequence[str], span: tuple[int, int] | None) -> Recording:
    """Reads a multi-segment record; samples are missing wherever no segment has all leads."""
    n = joined.per_frame
    first, last = span or (0, joined.frames * n)
    if (last - first) * len(joined.names) > MAX_READ:
        raise Rejected("too_large", f"{last - first} samples of {len(joined.names)} signals at once")
    rows = lead_names.index(joined.names)
    if absent := lead_names.missing(rows, wanted):
        raise Rejected("missing_lead", " ".join(absent))
    names = lead_names.needed(rows, wanted)
    mv = np.zeros((len(names), last - first), np.float32)
    missing = np.ones(last - first, bool)
    saturated, at_limit = np.zeros((2, last - first), bool)
    flags = {"derived"} if not set(wanted) <= set(names) else set()
    flags |= {"lost_segment"} if joined.lost else set()
    for part in joined.parts:
        start, stop = part.first * n, (part.first + part.frames) * n
        begin, end = max(start, first), min(stop, last)
        if begin >= end or lead_names.missing(lead_names.index([s.name for s in part.header.signals]), names):
            continue
        found = wfdb_signals.recording(root, part.record, part.header, n, names, (begin - start, end - start))
        here = slice(begin - first, end - first)
        mv[:, here] = lead_names.arrange(found.mv, found.leads, names)
        missing[here] = False if found.missing is None else found.missing
        saturated[here] = False if found.saturated is None else found.saturated
        at_limit[here] = False if found.at_limit is None else found.at_limit
        flags |= {*found.flags}
    masks = [mask if mask.any() else None for mask in (missing, saturated, at_limit)]
    return Recording(mv, names, _checked_rate(joined.rate * n), masks[0], masks[1], tuple(sorted(flags)), masks[2])


# ---- headers ----


def _header_file(record: str) -> str:
    ending = record[-4:]
    return record if ending.lower() == ".hea" != ending else f"{record}.hea"


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
