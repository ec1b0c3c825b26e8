"""64 numbers a window that know a recording again at another rate, rounding, high-pass, or shifted by some samples.

The amplitude spectrum of a Hann-windowed ECG does not change with its rate, hardly with a shift that is short against
the window, and above 1.5 Hz not with a high-pass of 0.5 Hz. Its square root, from 1.5 to 20 Hz in four leads, is
projected on random directions that are the same everywhere and scaled to length 1. Two recordings have other beats at
other times, so other spectra, even of one patient. docs/results/leaks.md has the distances of both kinds.

`private/fingerprints/SHARD.parquet` keeps those of a shard; they are computed anew where it is missing or of another
shard. From them nobody can draw the ECG, but whoever has a recording can find it in the list: they stay in `private/`.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from umbra.errors import UserError
from umbra.files import atomic, damaged
from umbra.parquet import Table
from umbra.schema import DTYPE, PRIVATE, Geometry, Manifest, Shard

VERSION = "1"
NUMBERS = 64
LOW, HIGH = 1.5, 20.0  # Hz
NEAR = 0.06  # distance up to which two windows count as one recording
SHORTEST = 5.0  # seconds; in shorter windows a shift of some samples changes too much
SLOWEST = 45.0  # Hz; a lower rate does not hold the band
FINE = 100.0  # Hz; higher rates are lowered to this or more
PREFERRED = ("II", "V2")  # a limb and a chest lead: more leads cost more and tell recordings apart no better
FOLDER, COLUMN = "fingerprints", "fingerprint"
FIX = "delete it, it is then computed again"
MOST_BYTES = 1 << 17  # of windows that are transformed at a time
TILE = 2048  # windows of each side in one matrix product
Numbers = NDArray[np.float32]


def leads_of(leads: Sequence[str]) -> tuple[str, ...]:
    """The leads that are looked at in a data set, or in two of which `leads` are the common ones: two at most."""
    others = (lead for lead in leads if lead not in PREFERRED)
    return (*(lead for lead in PREFERRED if lead in leads), *others)[: len(PREFERRED)]


def numbers(windows: NDArray[Any], rate: float, leads: Sequence[str], seconds: float) -> Numbers:
    """Fingerprints `[n, 64]` of length 1 of windows `[n, leads, samples]` at `rate` Hz, in any unit.

    `seconds`: their length, from which follow the frequencies that are looked at: fingerprints of one length compare.
    A window in which nothing changes has zeros, which are near to nothing.
    """
    step = max(int(rate // FINE), 1)
    x: NDArray[Any] = _summed(windows, step) if step > 1 else windows
    first, last = math.ceil(LOW * seconds - 1e-6), math.floor(HIGH * seconds + 1e-6) + 1
    spectrum = np.fft.rfft(x * _hann(x.shape[-1]))[..., first:last]
    root = np.sqrt(np.sqrt(spectrum.real**2 + spectrum.imag**2))
    if step > 1:
        root *= _gain(first, last, seconds, rate, step)
    parts = [root[:, i] @ _directions(lead, len(leads), i, last - first) for i, lead in enumerate(leads)]
    found = np.concatenate(parts, axis=1)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.where(length > 0, length, 1)).astype(np.float32)


def _summed(windows: NDArray[Any], step: int) -> NDArray[Any]:
    """The sums of `step` samples each: enough for the band, and much faster to transform."""
    size = windows.shape[-1] // step * step
    wide = np.int32 if windows.dtype.kind == "i" else np.float64
    total: NDArray[Any] = windows[..., 0:size:step].astype(wide)
    for offset in range(1, step):
        total += windows[..., offset:size:step]
    return total


@lru_cache(maxsize=8)
def _gain(first: int, last: int, seconds: float, rate: float, step: int) -> NDArray[np.float64]:
    """What undoes the low-pass of `_summed`, for square roots of amplitudes."""
    angle = np.pi * np.arange(first, last) / seconds / rate
    gain: NDArray[np.float64] = np.sqrt(step * np.sin(angle) / np.sin(step * angle))
    return gain


@lru_cache(maxsize=8)
def _hann(samples: int) -> NDArray[np.float64]:
    """Periodic, so that an offset stays in the first two frequencies."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)


@lru_cache(maxsize=32)
def _directions(lead: str, leads: int, place: int, frequencies: int) -> NDArray[np.float64]:
    """Random directions `[frequencies, numbers of this lead]`, the same on every machine and in every version."""
    count = NUMBERS * (place + 1) // leads - NUMBERS * place // leads
    raw = np.random.PCG64([zlib.crc32(lead.encode()), leads]).random_raw(frequencies * count)
    return np.asarray((raw >> np.uint64(11)).reshape(frequencies, count) * 2.0**-52 - 1, np.float64)


def distances(wanted: Numbers, seen: Iterable[Numbers]) -> Numbers:
    """Distance of each wanted fingerprint `[m, 64]` to the nearest of the blocks `[k, 64]` that are seen; 2 if none.

    Fingerprints have length 1, so that |a - b|^2 = 2 - 2 a.b: matrix products, tile by tile.
    """
    likest = np.full(len(wanted), -1.0, np.float32)
    for block in seen:
        for at in range(0, len(block), TILE):
            turned = np.ascontiguousarray(block[at : at + TILE].T)
            for start in range(0, len(wanted), TILE):
                rows = slice(start, start + TILE)
                np.maximum(likest[rows], (wanted[rows] @ turned).max(axis=1), out=likest[rows])
    return np.sqrt(np.maximum(2 - 2 * likest, 0))


# ---- of data sets on disk ----


def file_of(root: Path, shard: str) -> Path:
    return root / PRIVATE / FOLDER / f"{shard}.parquet"


class Gathered:
    """The fingerprints of a shard's windows, gathered while it is written. `leads`: those of the data set."""

    def __init__(self, leads: Sequence[str], rate: float) -> None:
        self.leads, self.rate = leads_of(leads), rate
        self._rows = [leads.index(lead) for lead in self.leads]
        self._waiting: list[NDArray[np.int16]] = []
        self._bytes = 0
        self._done = [np.zeros((0, NUMBERS), np.float32)]

    def add(self, units: NDArray[np.int16]) -> None:
        """Takes a window `[leads, samples]`."""
        self._waiting.append(units[self._rows])
        self._bytes += self._waiting[-1].nbytes
        if self._bytes > MOST_BYTES:
            self._compute()

    def all(self) -> Numbers:
        """Those of all windows so far `[n, 64]`."""
        self._compute()
        return np.concatenate(self._done)

    def _compute(self) -> None:
        if self._waiting:
            windows = np.stack(self._waiting)
            self._done.append(numbers(windows, self.rate, self.leads, windows.shape[-1] / self.rate))
            self._waiting, self._bytes = [], 0


def write(root: Path, shard: str, digest: str, found: Numbers, leads: Sequence[str]) -> None:
    """Keeps the fingerprints, by the leads `leads`, of a shard whose tar has the sha256 `digest`."""
    array = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), NUMBERS)
    table = pa.table({COLUMN: array}).replace_schema_metadata(_known(digest, leads))
    with atomic(file_of(root, shard)) as path:
        pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)


def of_shard(root: Path, manifest: Manifest, shard: Shard) -> Numbers:
    """The fingerprints of a shard by `leads_of` its leads: those that are kept, else computed and, where there is a
    `private/`, kept.

    Raises `UserError` for a damaged file, and for a shard that has to be read and is not there.
    """
    used = leads_of(manifest.leads)
    kept = _read(root, shard, used)
    if kept is not None:
        return kept
    found = computed(root, manifest, shard, used, manifest.samples / manifest.rate)
    if os.access(root / PRIVATE, os.W_OK):
        write(root, shard.name, shard.sha256, found, used)
    return found


def computed(root: Path, manifest: Manifest, shard: Shard, leads: Sequence[str], seconds: float) -> Numbers:
    """The fingerprints `[windows * pieces, 64]` of a shard by `leads`, read from its tar; each window is cut into as
    many pieces of `seconds` as it has room for."""
    samples = min(round(seconds * manifest.rate), manifest.samples)
    rows, pieces = [manifest.leads.index(lead) for lead in leads], manifest.samples // samples
    found = [np.zeros((0, NUMBERS), np.float32)]
    for block in _windows(root / shard.name, shard, manifest.geometry):
        cut = block[:, rows, : pieces * samples].reshape(len(block), len(rows), pieces, samples)
        found.append(numbers(cut.swapaxes(1, 2).reshape(-1, len(rows), samples), manifest.rate, leads, seconds))
    return np.concatenate(found)


def _known(digest: str, leads: Sequence[str]) -> dict[bytes, bytes]:
    words = {"version": VERSION, "shard": digest, "leads": ",".join(leads)}
    return {key.encode(): word.encode() for key, word in words.items()}


def _read(root: Path, shard: Shard, leads: Sequence[str]) -> Numbers | None:
    """The fingerprints that are kept of a shard; None if there are none, or they are of another shard or version."""
    path, known = file_of(root, shard.name), _known(shard.sha256, leads)
    if not path.is_file():
        return None
    table = Table(path, FIX)
    if {key: (table.schema.metadata or {}).get(key) for key in known} != known:
        return None
    column = table.read([COLUMN]).column(0).combine_chunks()
    if column.type != pa.list_(pa.float32(), NUMBERS) or len(column) != shard.samples:
        raise damaged(path, f"it has {len(column)} rows for {shard.samples} windows", FIX)
    found: Numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, NUMBERS)
    if not np.isfinite(found).all():
        raise damaged(path, "it has values that are not finite", FIX)
    return found


def _windows(path: Path, shard: Shard, geometry: Geometry) -> Iterator[NDArray[np.int16]]:
    """The windows of a shard, int16 `[n, leads, samples]`, some at a time."""
    try:
        with open(path, "rb") as file:
            most = max(4 * MOST_BYTES // geometry.stride, 1)
            for at in range(0, shard.samples, most):
                count = min(most, shard.samples - at)
                data = file.read(count * geometry.stride)
                if len(data) != count * geometry.stride:
                    raise UserError(f"shard {path} is cut off: delete it and run the same build again")
                flat = np.frombuffer(data, DTYPE, offset=geometry.first)
                strides = geometry.stride, geometry.samples * DTYPE.itemsize, DTYPE.itemsize
                yield as_strided(flat, (count, geometry.leads, geometry.samples), strides, writeable=False)
    except OSError as error:
        raise UserError(
            f"shard {path} cannot be read ({error.strerror}): run the same build again, or copy it here"
        ) from error
