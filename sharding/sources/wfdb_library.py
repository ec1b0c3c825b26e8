"""Decodes WFDB signal files in formats 8, 310, 311 and 508, 516, 524 (FLAC) with the package wfdb.

The package reads a minimal header that is written here, for one signal file, in a temporary folder: it rejects the
record lines of CinC (`E00001.mat 12 500 ...`), and `::` in a path has a special meaning to it.
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
    """Number of samples in a signal file, of all signals (`per_frame` of each) together. Raises `Rejected`."""
    if form in FLAC_BITS:
        return _flac_frames(path, form, offset, per_frame) * sum(per_frame)
    size = max(os.stat(path).st_size - offset, 0)
    if form == "8":
        return size
    return (size - size % 2 if form == "310" else size) * 3 // 4  # 3 in 4 bytes; 310 is made of 16-bit words


def samples(
    path: str, form: str, offset: int, initial: Sequence[int], per_frame: Sequence[int], first: int, last: int
) -> NDArray[np.integer]:
    """Frames `first` to `last` (exclusive) of a signal file, `[frames, samples per frame of all signals]`.

    `initial`: the signals' values before the first sample, for format 8. Raises `Rejected`, `OSError`.
    """
    if form == "8" and first:  # the package starts from the initial value at any frame
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
    if form == "311":  # wfdb 4.3.1 takes the unused bit 30 for a part of the third sample of a group
        frames = ((frames + 512) & 1023) - 512
    narrow = FORMATS[form].lowest >= -(1 << 15)
    return frames.astype(np.int16) if narrow else frames  # the same type as from `wfdb_fast`


def _decoded(record: str, first: int, last: int) -> list[NDArray[np.integer]]:
    """All samples of each signal for frames `first` to `last` (exclusive). Raises `Rejected`, `OSError`."""
    import wfdb

    try:
        found = wfdb.rdrecord(record, first, last, physical=False, smooth_frames=False, ignore_skew=True, return_res=32)
    except OSError:
        raise
    except Exception as error:  # of wfdb, libsndfile or NumPy, whichever meets the damaged bytes
        raise Rejected("truncated", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error
    return found.e_d_signal


def _sums(path: str, offset: int, per_frame: Sequence[int], frames: int) -> list[int]:
    """The sum of each signal's differences over the first `frames` frames, for format 8. Raises `Rejected`."""
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
    """Number of frames in a FLAC file after `offset` samples of each signal. Raises `Rejected` if the file does not
    match its header."""
    import soundfile

    if read_at(path, 0, 4) != b"fLaC":
        raise Rejected("format", "not a FLAC file")
    try:
        stream = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise Rejected("format", " ".join(str(error).split())[:200].replace(path, "signal file")) from error
    if len(set(per_frame)) > 1:
        raise Rejected("header", "signals of one FLAC file with different numbers of samples per frame")
    if stream.channels != len(per_frame):
        raise Rejected("header", f"{len(per_frame)} signals in a FLAC file of {stream.channels}")
    if STREAM_BITS.get(stream.subtype, 32) > FLAC_BITS[form]:
        raise Rejected("format", f"{stream.subtype} in a FLAC file of format {form}")
    return max(stream.frames - offset, 0) // per_frame[0]
