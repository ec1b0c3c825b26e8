"""HDF5 files: many records in one array (`FILE#ID`), a dataset per record (`FILE#NAME`), or one record per file."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sharding import watchdog
from sharding.sources import arrays
from sharding.sources.arrays import regular_file, usable
from sharding.sources.protocol import ArrayConfig, Head, Recording, Rejected, SourceConfig, files_below, refuse_unused
from umbra.errors import UserError

ENDINGS = (".hdf5", ".h5")
OPEN_FILES = 32
MAX_CHUNK = 1 << 30
MAX_RECORDS = 1 << 26
MAX_ID = 256


@dataclass(slots=True)
class _Opened:
    """An open file, its array or group of arrays, its sorted `ids` and their `rows` (None: no ids)."""

    file: h5py.File
    signals: h5py.Dataset | h5py.Group
    ids: NDArray | None = None
    rows: NDArray[np.int64] | None = None


_opened: OrderedDict[tuple, _Opened] = OrderedDict()


def check(options: SourceConfig) -> None:
    """Raises `UserError` for invalid options."""
    refuse_unused(options, "meta")
    arrays.check_options(options.array, ["rate", "leads"])


def find(root: Path, without: str, options: SourceConfig) -> list[str]:
    """Names of all records in the `.hdf5` and `.h5` files under `root`, sorted; duplicate ids are listed once.

    An unusable file is listed under its own name, so that its reason is reported. Raises `UserError` if the options fit
    none of the files.
    """
    found: list[str] = []
    refused = []
    paths = files_below(root, without, ENDINGS)
    for path in paths:
        watchdog.restart()
        try:
            with _as_rejected():
                found += _names(path, _open(root, path, options.array))
        except (Rejected, OSError) as error:
            refused.append(f"{path}: {error.detail if isinstance(error, Rejected) else error.strerror}")
            found.append(path)
    if paths and len(refused) == len(paths):
        raise UserError(f"none of {len(paths)} HDF5 files can be read with these source.array.* keys; {refused[0]}")
    return sorted(found)


def head(root: Path, record: str, options: SourceConfig) -> Head:
    """Rate, length and leads, from the options and the array's shape. See `Head`.

    With `trim`, the length is that before trimming.
    """
    path, _, _, samples = _located(root, record, options.array)
    return Head(options.array.rate, samples, list(options.array.leads), [path])


def read(root: Path, record: str, wanted: Sequence[str], options: SourceConfig) -> Recording:
    """The leads needed for `wanted`, in millivolts. See `Recording`."""
    _, dataset, row, _ = _located(root, record, options.array)
    with _as_rejected():
        values = dataset[()] if row is None else dataset[row]
    return arrays.recording(values, wanted, options.array)


def _located(root: Path, record: str, options: ArrayConfig) -> tuple[str, h5py.Dataset, int | None, int]:
    """(file, dataset, row in it, samples per lead) of a record."""
    usable(options)
    match = re.fullmatch(r"(.+?\.(?:hdf5|h5))(?:#(.*))?", record, re.IGNORECASE | re.DOTALL)
    if not match:
        raise Rejected("missing_file", "a name without a .hdf5 or .h5 file")
    path, name = match.groups()
    with _as_rejected():
        opened = _open(root, path, options)
        dataset, row = _find(opened, name)
        shape = dataset.shape if row is None else dataset.shape[1:]
    return path, dataset, row, arrays.check_shape(shape, options, options.leads)


def _find(opened: _Opened, name: str | None) -> tuple[h5py.Dataset, int | None]:
    """(dataset, row in it) of the record `name` of a file; without a name, the file is the record."""
    signals = opened.signals
    if isinstance(signals, h5py.Group):
        if name is None:
            raise Rejected("shape", "a file of several records; their names are FILE#NAME")
        return _array(_object(signals, name), (2,)), None
    if signals.ndim == 2:
        if name is not None:
            raise Rejected("missing_file", "the file holds a single record")
        return signals, None
    if name is None:
        raise Rejected("shape", f"a file of {len(signals)} records; their names are FILE#ID")
    return signals, _row(opened, name)


def _row(opened: _Opened, name: str) -> int:
    """The row of the record with the id `name`; if the file has no ids, `name` is the row number."""
    ids, rows = opened.ids, opened.rows
    number = int(name) if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) else None
    if ids is None or rows is None:
        if number is None or not 0 <= number < len(opened.signals):
            raise Rejected("missing_file", f"no row {name[:40]} among {len(opened.signals)}")
        return number
    key = number if ids.dtype.kind == "i" else name.encode("utf-8", "surrogateescape")
    if key is None or (isinstance(key, bytes) and len(key) > ids.dtype.itemsize):
        raise Rejected("missing_file", f"no id {name[:40]}")
    typed = np.array(key, ids.dtype)
    first, last = np.searchsorted(ids, typed, "left"), np.searchsorted(ids, typed, "right")
    if first == last:
        raise Rejected("missing_file", f"no id {name[:40]}")
    if last - first > 1:
        raise Rejected("duplicate_record", f"the file holds the id {name[:40]} {last - first} times")
    return int(rows[first])


def _names(path: str, opened: _Opened) -> list[str]:
    signals, ids = opened.signals, opened.ids
    if isinstance(signals, h5py.Group):
        return [f"{path}#{name}" for name in signals]
    if signals.ndim == 2:
        return [path]
    if ids is None:
        return [f"{path}#{row}" for row in range(len(signals))]
    unique = np.unique(ids).tolist()
    texts = unique if ids.dtype.kind == "i" else (value.decode("utf-8", "surrogateescape") for value in unique)
    return [f"{path}#{text}" for text in texts]


# ---- open files ----


def _open(root: Path, path: str, options: ArrayConfig) -> _Opened:
    """The open file, from this process's cache if it has not changed."""
    full = regular_file(root, path)
    status = os.stat(full)
    key = (os.getpid(), full, status.st_mtime_ns, status.st_size, options.signals, options.ids)
    if key in _opened:
        _opened.move_to_end(key)
        return _opened[key]
    # libhdf5 caches the content of an open file, even if the file has changed or the process was forked
    stale = [old for old in _opened if old[0] != key[0] or old[1] == full] or list(_opened)[: -OPEN_FILES + 1]
    for old in stale:
        _opened.pop(old).file.close()
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  (registers its filters: blosc, bitshuffle, zstd, ...)
    file = h5py.File(full, "r", locking=False)
    try:
        opened = _Opened(file, _signals(file, options.signals))
        if options.ids and isinstance(opened.signals, h5py.Dataset) and opened.signals.ndim > 2:
            opened.ids, opened.rows = _sorted_ids(file, options.ids, len(opened.signals))
    except BaseException:
        file.close()
        raise
    _opened[key] = opened
    return opened


def _signals(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group:
    if name:
        found = _object(file, name)
        return found if isinstance(found, h5py.Group) else _array(found, (2, 3, 4))
    dimensions: dict[str, int] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim in (2, 3):
            dimensions[name] = item.ndim
        return True if len(dimensions) > 100 else None

    file.visititems(note)
    for ndim in (3, 2):
        names = [name for name, n in dimensions.items() if n == ndim]
        if len(names) == 1:
            return _array(_object(file, names[0]), (ndim,))
        if names:
            raise Rejected(
                "shape",
                f"several arrays, {', '.join(names[:10])}: name one, or the group of them, in source.array.signals",
            )
    raise Rejected("shape", f"no array of two or three dimensions; the file holds {_content(file)}")


def _object(group: h5py.Group, name: str) -> h5py.Dataset | h5py.Group:
    """The object at `name` (`/`: the group itself). Links are rejected: they may lead out of the input folder."""
    found = group
    for part in filter(None, name.split("/")):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise Rejected("missing_file", f"no dataset '{name[:100]}'; the file holds {_content(group)}")
        if not isinstance(link, h5py.HardLink):
            raise Rejected("path", f"'{name[:100]}' is a link")
        found = found[part]
    return found


def _content(group: h5py.Group) -> str:
    names = [name for name, _ in zip(group, range(20))]
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _array(dataset: h5py.Dataset | h5py.Group | h5py.Datatype, dimensions: tuple[int, ...]) -> h5py.Dataset:
    """`dataset` if it is a readable array of numbers. Raises `Rejected`."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in dimensions:
        shape = getattr(dataset, "shape", "none")
        raise Rejected(
            "shape", f"'{dataset.name}' is not an array of {' or '.join(map(str, dimensions))} dimensions: {shape}"
        )
    _check_storage(dataset)
    if dataset.dtype.kind not in "iuf":
        raise Rejected("format", f"'{dataset.name}' is an array of {dataset.dtype}, not of real numbers")
    return dataset


def _check_storage(dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise Rejected("path", f"the values of '{dataset.name}' are stored in other files")
    filters = dataset.id.get_create_plist()
    for number, _, _, name in (filters.get_filter(i) for i in range(filters.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            known = name.decode("ascii", "replace").partition(";")[0] or "unnamed"
            raise Rejected(
                "format", f"'{dataset.name}' is compressed by filter {number} ({known}): pip install hdf5plugin"
            )
    if dataset.chunks and prod(dataset.chunks) * dataset.dtype.itemsize > MAX_CHUNK:
        raise Rejected("too_large", f"'{dataset.name}' is stored in chunks of more than {MAX_CHUNK >> 20} MiB")


def _sorted_ids(file: h5py.File, name: str, count: int) -> tuple[NDArray, NDArray[np.int64]]:
    """(ids sorted, the row of each): int64 or bytes."""
    dataset = _object(file, name)
    if not isinstance(dataset, h5py.Dataset) or prod(dataset.shape) != count or count > MAX_RECORDS:
        shape = getattr(dataset, "shape", "none")
        raise Rejected("shape", f"'{name}' has shape {shape}, for {count} records")
    _check_storage(dataset)
    kind, text = dataset.dtype.kind, h5py.check_string_dtype(dataset.dtype)
    if text is None and kind not in "iuf":
        raise Rejected("format", f"ids of {dataset.dtype}, neither numbers nor text")
    if text is not None and (text.length or _longest(dataset)) > MAX_ID:
        raise Rejected("format", f"ids of more than {MAX_ID} bytes")
    values = dataset[()].reshape(-1)
    if text is not None:
        ids = np.char.strip(values.astype("S"))
    else:
        ids = values.astype(np.int64)
        if not (ids == values).all():
            raise Rejected("format", "ids that are not 64-bit integers")
    order = np.argsort(ids, kind="stable")
    return ids[order], order


def _longest(dataset: h5py.Dataset) -> int:
    """Bytes of the longest variable-length string, from the stored lengths: libhdf5 trusts any, up to 4 GiB each.

    A string is stored as 16 bytes, its length and then its address (HDF5 file format specification, global heap ids).
    """
    storage = dataset.id
    if storage.get_create_plist().get_nfilters():
        raise Rejected("format", "compressed ids of variable length: store them with a fixed length")
    if dataset.chunks:
        places = (storage.get_chunk_info(i).chunk_offset for i in range(storage.get_num_chunks()))
        stored = b"".join(storage.read_direct_chunk(place)[1] for place in places)
    elif storage.get_offset() is not None:
        with open(dataset.file.filename, "rb") as file:
            file.seek(storage.get_offset())
            stored = file.read(16 * dataset.size)
    else:
        raise Rejected("format", "ids stored neither in one piece nor in chunks")
    if not stored or len(stored) % 16:
        raise Rejected("format", "ids that are not stored as strings")
    return int(np.frombuffer(stored, "<u4")[::4].max())


@contextmanager
def _as_rejected() -> Iterator[None]:
    """Converts h5py's errors for damaged files to `Rejected`, and file system errors to `OSError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        text = " ".join(str(error).split())[:200]
        number = re.search(r"errno = ([1-9][0-9]*)", str(error))
        if isinstance(error, OSError) and (error.errno or number):
            code = error.errno or int(number[1])  # type: ignore[index]
            raise OSError(code, os.strerror(code)) from error
        raise Rejected("truncated" if "truncated" in text else "unreadable", text) from error
