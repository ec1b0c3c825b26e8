"""Reads the signals of one WFDB header, that of a single-segment record or of one segment: length, samples, millivolts.

Signal files are decoded by `wfdb_fast` or, in formats that it does not support, by the package wfdb (`wfdb_library`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding import signal
from sharding.saturation import Limits, converter, saturation
from sharding.sources import wfdb_fast, wfdb_library
from sharding.sources.protocol import Recording, Rejected, contained
from sharding.sources.wfdb_formats import FAST, FORMATS, LIBRARY
from sharding.sources.wfdb_header import Header, Layout, SignalLine
from umbra import leads as lead_names

MAX_READ = 1 << 24
MAX_VALUES = 1 << 33
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class FileLayout:
    """The layout of a signal file: frame by frame, and in each frame `per_frame` samples of each signal in turn."""

    form: str
    offset: int
    per_frame: tuple[int, ...]
    skew: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.per_frame)

    @property
    def plain(self) -> bool:
        return max(self.per_frame) == 1 and not any(self.skew)


def reader(header: Header) -> str:
    """The reader of a header's signal files: `wfdb` if at least one needs it, else `fast`."""
    forms = {line.layout.format for line in header.signals}
    return LIBRARY if any(FORMATS[form].reader == LIBRARY for form in forms if form in FORMATS) else FAST


def signal_files(record: str, header: Header) -> list[str]:
    """Relative paths of a header's signal files."""
    folder = record.rpartition("/")[0]
    names = dict.fromkeys(line.file for line in header.signals)
    return [f"{folder}/{name}" if folder else name for name in names]


def length(root: Path, record: str, header: Header) -> int:
    """Number of frames of a header's signals, checked against the file sizes. Raises `Rejected`."""
    lengths = [header.frames] if header.frames else []
    for _, lines in _by_file(header.signals):
        layout = _file_layout(tuple([line.layout for line in lines]))
        held = _held(_signal_path(root, record, lines[0].file), layout) // layout.width
        if header.frames and held < header.frames:
            raise Rejected("truncated", f"{held} of {header.frames} samples")
        lengths.append(held)
    frames = lengths[0] if header.frames else min(lengths)
    if frames <= 0:
        raise Rejected("empty", "no samples")
    if frames * sum(line.layout.per_frame for line in header.signals) > MAX_VALUES:
        raise Rejected("too_large", f"{frames} samples of {len(header.signals)} signals")
    return frames


def digital(root: Path, record: str, header: Header) -> list[NDArray[np.integer]]:
    """All samples of each signal as stored, aligned by skew; missing samples are the lowest value of the format."""
    frames = header.frames or length(root, record, header)
    return list(_digital(root, record, replace(header, frames=frames), range(len(header.signals)), 0, frames)[0])


def recording(
    root: Path, record: str, header: Header, per_frame: int, wanted: Sequence[str], span: tuple[int, int] | None
) -> Recording:
    """The leads needed for `wanted`, in millivolts, at `per_frame` samples per frame; of `span` only, if given.

    Leads with more samples per frame are averaged over blocks, ignoring missing samples. Raises `Rejected`.
    """
    names, picked = _picked(tuple([s.name for s in header.signals]), tuple(wanted))
    if not header.frames:
        header = replace(header, frames=length(root, record, header))
    total = header.frames or 0
    first, last = span or (0, total * per_frame)
    if (last - first) * len(header.signals) > MAX_READ:
        raise Rejected("too_large", f"{last - first} samples of {len(header.signals)} signals at once")
    begin, end = first // per_frame, -(-last // per_frame)
    stored, sums = _digital(root, record, header, picked, begin, end)
    lines = [header.signals[row] for row in picked]
    flags = []
    if (begin, end) == (0, total) and any(
        line.checksum is not None and (line.checksum - s) % 65536 for line, s in zip(lines, sums.tolist())
    ):
        flags.append("checksum")
    if not set(wanted) <= set(names):
        flags.append("derived")
    values, gap, at_limit, saturated = _evened(stored, lines, per_frame, header.rate)
    mv = _millivolt(values, lines)
    mv[gap] = 0.0
    here = slice(first - begin * per_frame, last - begin * per_frame)  # drops samples of incomplete frames
    missing = np.logical_or.reduce(gap, axis=0)[here] if gap.any() else None
    at_limit, saturated = (None if mask is None else mask[here] for mask in (at_limit, saturated))
    return Recording(mv[:, here], list(names), header.rate * per_frame, missing, saturated, tuple(flags), at_limit)


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


@lru_cache(maxsize=4096)
def _limits(layouts: tuple[Layout, ...]) -> tuple[Limits, Limits]:
    """(lowest and highest sample of each signal's converter, of its format)."""
    widest = [(FORMATS[layout.format].lowest + 1, FORMATS[layout.format].highest) for layout in layouts]
    return [converter(layout.resolution, layout.zero, wide) for layout, wide in zip(layouts, widest)], widest


# ---- from stored samples to millivolt ----


def _evened(
    stored: Sequence[NDArray[np.integer]] | NDArray[np.integer], lines: list[SignalLine], per_frame: int, rate: float
) -> tuple[NDArray, Bools, Bools | None, Bools | None]:
    """(values `[rows, samples]` at `per_frame` samples per frame, mask of missing ones, masks `[samples]` of some lead
    at a limit and of some lead saturated); the last two are None if there are no such samples. `rate`: frames a second.
    """
    lowest = [FORMATS[line.layout.format].lowest for line in lines]
    blocks = [line.layout.per_frame // per_frame for line in lines]
    limits, widest = _limits(tuple([line.layout for line in lines]))
    if max(blocks) == 1:
        values = stored if isinstance(stored, np.ndarray) else np.stack(stored)
        gaps = values == np.array(lowest, values.dtype)[:, None]
        return values, gaps, *saturation(values, limits, widest, rate * per_frame)
    means, empty = zip(*map(_block_means, stored, lowest, blocks))
    rates = [rate * line.layout.per_frame for line in lines]
    found = (saturation(row[None], [limit], [wide], hz) for row, limit, wide, hz in zip(stored, limits, widest, rates))
    at_limit, saturated = zip(*found)
    return np.stack(means), np.stack(empty), _any_of_blocks(at_limit, blocks), _any_of_blocks(saturated, blocks)


def _any_of_blocks(masks: Sequence[Bools | None], blocks: Sequence[int]) -> Bools | None:
    """Mask of the blocks in which the mask of some lead is set; `blocks`: samples of each lead in a block."""
    reduced = [mask.reshape(-1, block).any(axis=1) for mask, block in zip(masks, blocks) if mask is not None]
    return np.logical_or.reduce(reduced) if reduced else None


def _block_means(values: NDArray[np.integer], lowest: int, block: int) -> tuple[NDArray[np.float64], Bools]:
    """(mean of each block without its missing samples, mask of empty blocks)."""
    blocks = values.reshape(-1, block)
    gap = blocks == lowest
    there = block - gap.sum(axis=1)
    total = np.where(gap, 0, blocks).sum(axis=1, dtype=np.float64)
    return total / np.maximum(there, 1), there == 0


def _millivolt(values: NDArray, lines: list[SignalLine]) -> NDArray[np.float32]:
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


# ---- from files to stored samples ----


def _digital(
    root: Path, record: str, header: Header, rows: Sequence[int], first: int, last: int
) -> tuple[list[NDArray[np.integer]] | NDArray[np.integer], NDArray[np.int16]]:
    """(samples of each row for frames `first` to `last` (exclusive), the 16 low bits of the sums of all samples read).

    A signal with skew is shifted: its frame 0 is `skew` frames into the file.
    """
    groups = _by_file(header.signals)
    if len(groups) == 1 and list(rows) == list(range(len(header.signals))):
        lines = groups[0][1]
        if _file_layout(tuple([line.layout for line in lines])).plain and (last - first) * len(lines) <= MAX_READ:
            values = np.ascontiguousarray(_read_file(root, record, lines, first, last).T)
            return values, values.sum(axis=1, dtype=np.int16)
    found: dict[int, NDArray[np.integer]] = {}
    sums: dict[int, np.int16] = {}
    for start, lines in groups:
        picked = [row - start for row in rows if start <= row < start + len(lines)]
        if not picked:
            continue
        end = last + max(lines[i].layout.skew for i in picked)
        for i, values in zip(picked, _signals(root, record, lines, picked, first, min(end, header.frames or last))):
            sums[start + i] = values.sum(dtype=np.int16)
            found[start + i] = _shifted(values, lines[i].layout, last - first)
    return [found[row] for row in rows], np.array([sums[row] for row in rows])


def _shifted(values: NDArray[np.integer], layout: Layout, frames: int) -> NDArray[np.integer]:
    """`frames` frames of a signal, starting at its skew; padded at the end with missing samples."""
    count = frames * layout.per_frame
    if not layout.skew:
        return values[:count]
    shifted = values[layout.skew * layout.per_frame :][:count]
    return np.pad(shifted, (0, count - len(shifted)), constant_values=FORMATS[layout.format].lowest)


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


def _signals(
    root: Path, record: str, lines: list[SignalLine], picked: list[int], first: int, last: int
) -> list[NDArray[np.integer]]:
    """The samples of some signals of one file, decoded in steps of at most `MAX_READ` values."""
    places = [0, *accumulate(line.layout.per_frame for line in lines)]
    step = max(MAX_READ // places[-1], 1)
    parts = []
    for begin in range(first, last, step):
        frames = _read_file(root, record, lines, begin, min(begin + step, last))
        parts.append([frames[:, places[i] : places[i + 1]].reshape(-1) for i in picked])
    return parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts)]


def _read_file(root: Path, record: str, lines: list[SignalLine], first: int, last: int) -> NDArray[np.integer]:
    """Frames `first` to `last` (exclusive) of one signal file, `[frames, samples per frame of all signals]`."""
    layout = _file_layout(tuple([line.layout for line in lines]))
    path = _signal_path(root, record, lines[0].file)
    try:
        if FORMATS[layout.form].reader == LIBRARY:
            initial = [line.initial for line in lines]
            return wfdb_library.samples(path, layout.form, layout.offset, initial, layout.per_frame, first, last)
        width = layout.width
        values = wfdb_fast.samples(path, layout.form, layout.offset, first * width, last * width)
        return values.reshape(last - first, width)
    except FileNotFoundError as error:
        raise Rejected("missing_file", "signal file") from error
    except PermissionError as error:
        raise Rejected("unreadable", "signal file") from error


@lru_cache(maxsize=4096)
def _file_layout(layouts: tuple[Layout, ...]) -> FileLayout:
    """The layout of one file's signals. Raises `Rejected` if it is not supported."""
    first = layouts[0]
    if len({(layout.format, layout.offset) for layout in layouts}) > 1:
        raise Rejected("header", "signals of one file with several formats or offsets")
    if first.format not in FORMATS:
        raise Rejected("format", f"signal format {first.format}")
    per_frame, skew = (tuple(getattr(layout, key) for layout in layouts) for key in ("per_frame", "skew"))
    return FileLayout(first.format, first.offset, per_frame, skew)


def _held(path: str, layout: FileLayout) -> int:
    """Number of samples in a signal file, of all signals together. Raises `Rejected`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Rejected("unreadable", "signal file is not a regular file")
        if FORMATS[layout.form].reader == LIBRARY:
            return wfdb_library.held(path, layout.form, layout.offset, layout.per_frame)
        return wfdb_fast.held(path, layout.form, layout.offset)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", "signal file") from error
    except (ValueError, OSError) as error:
        raise Rejected("unreadable", "signal file") from error


def _signal_path(root: Path, record: str, file: str) -> str:
    if "/" in file or "\\" in file or file in ("", ".", "..", "~") or "\0" in file:
        raise Rejected("path", "a signal file name with a folder in it")
    return os.path.join(os.path.dirname(contained(root, record)), file)
