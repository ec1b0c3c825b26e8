"""WFDB signal files in formats 8, 310, 311 and, FLAC, 508, 516, 524: decoded by the package wfdb.

It is given a header of our own words for one signal file, in a folder of its own: it refuses the record lines of CinC
(`E00001.mat 12 500 ...`), and takes `::` in the name of a folder for a command.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharding.sources.protocol import Rejected, read_at
from sharding.sources.wfdb_formats import FORMATS

FLAC_BITS = {"508": 8, "516": 16, "524": 24}
STREAM_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}
CHUNK = 1 << 24


def held(path: str, form: str, offset: int, per_frame: Sequence[int]) -> int:
    """Samples in a signal file, of all its signals (`per_frame` of each) together. Raises `Rejected`."""
    if form in FLAC_BITS:
        return _flac_frames(path, form, offset, per_frame) * sum(per_frame)
    size = max(os.stat(path).st_size - offset, 0)
    if form == "8":
        return size
    return (size - size % 2 if form == "310" else size) * 3 // 4  # three in 4 bytes; those of 310 in pairs of bytes


def samples(
    path: str, form: str, offset: int, initial: Sequence[int], per_frame: Sequence[int], first: int, last: int
) -> NDArray[np.integer]:
    """The frames of a signal file from `first` to before `last`, `[frames, samples of all signals]`.

    `initial` are the signals' values before the first sample, for format 8. Raises `Rejected`, `OSError`.
    """
    if form == "8" and first:  # the package would begin at the initial value wherever it starts
        initial = [a + b for a, b in zip(initial, _sums(path, offset, per_frame, first))]
    lines = [f"r {len(per_frame)} 250 {last}"]
    lines += [f"d {form}x{n}+{offset} 1(0) 0 0 {start} 0 0" for n, start in zip(per_frame, initial)]
    with tempfile.TemporaryDirectory(prefix="umbra-wfdb-") as folder:
        os.symlink(os.path.abspath(path), f"{folder}/d")
        with open(f"{folder}/r.hea", "w") as file:
            file.write("\n".join(lines) + "\n")
        signals = _decoded(f"{folder}/r", first, last)
    columns = [values.reshape(last - first, n) for values, n in zip(signals, per_frame)]
    frames = np.concatenate(columns, axis=1)
    if form == "311":  # wfdb 4.3.1 counts an unused bit of each group to its third sample, and does not take its sign
        frames = ((frames + 512) & 1023) - 512
    narrow = FORMATS[form].lowest >= -(1 << 15)
    return frames.astype(np.int16) if narrow else frames  # as wide as from `wfdb_fast`


def _decoded(record: str, first: int, last: int) -> list[NDArray[np.integer]]:
    """All samples of each signal between two frames. Raises `Rejected`, `OSError`."""
    import wfdb

    try:
        found = wfdb.rdrecord(record, first, last, physical=False, smooth_frames=False, ignore_skew=True, return_res=32)
    except OSError:
        raise
    except Exception as error:  # the package's own, libsndfile's, NumPy's: what damaged bytes bring about in them
        raise Rejected("truncated", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error
    return found.e_d_signal


def _sums(path: str, offset: int, per_frame: Sequence[int], frames: int) -> list[int]:
    """The sum of each signal's differences in the first `frames` frames of a file in format 8. Raises `Rejected`."""
    width, totals = sum(per_frame), np.zeros(sum(per_frame), np.int64)
    step = max(CHUNK // width, 1)
    for begin in range(0, frames, step):
        count = min(step, frames - begin) * width
        data = read_at(path, offset + begin * width, count)
        if len(data) < count:
            raise Rejected("truncated", f"{len(data)} of {count} bytes")
        totals += np.frombuffer(data, np.int8).reshape(-1, width).sum(axis=0, dtype=np.int64)
    return [int(part.sum()) for part in np.split(totals, np.cumsum(per_frame)[:-1])]


def _flac_frames(path: str, form: str, offset: int, per_frame: Sequence[int]) -> int:
    """Frames in a FLAC file behind `offset` samples of each signal. Raises `Rejected` for one that does not fit."""
    import soundfile

    if read_at(path, 0, 4) != b"fLaC":
        raise Rejected("format", "no FLAC file")
    try:
        stream = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise Rejected("format", " ".join(str(error).split())[:200].replace(path, "signal file")) from error
    if len(set(per_frame)) > 1:
        raise Rejected("header", "signals of one FLAC file with several numbers of samples a frame")
    if stream.channels != len(per_frame):
        raise Rejected("header", f"{len(per_frame)} signals in a FLAC file of {stream.channels}")
    if STREAM_BITS.get(stream.subtype, 32) > FLAC_BITS[form]:
        raise Rejected("format", f"{stream.subtype} in a FLAC file of format {form}")
    return max(stream.frames - offset, 0) // per_frame[0]
