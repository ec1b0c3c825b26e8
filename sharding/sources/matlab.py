"""Arrays in MATLAB files of versions 4 to 7: a matrix (`val`), or a field of a struct (`ECG.data`, as in CPSC 2018).

Files of version 7.3 are HDF5. Layout of the files: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import io

from sharding.sources.protocol import Rejected

MAX_BYTES = 1 << 29
_COMPRESSED = 15


def array(full: str, key: str) -> NDArray:
    """The array `key` of the file `full`, or its only one if `key` is empty. Raises only `Rejected` and `OSError`."""
    try:
        return _array(full, key)
    except (Rejected, OSError):
        raise
    except Exception as error:  # scipy raises errors of many kinds for damaged files
        raise Rejected("header", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error


def _array(full: str, key: str) -> NDArray:
    try:
        listed = [name for name, _, _ in io.whosmat(full)]
    except NotImplementedError as error:
        raise Rejected("format", "a MATLAB 7.3 file, which is HDF5: rename it to .h5 for source.format=hdf5") from error
    name, _, fields = (key or (listed[0] if len(listed) == 1 else "")).partition(".")
    if name not in listed:
        asked = f"no array '{name}'" if name else "several arrays and no source.array.signals"
        raise Rejected("format", f"{asked}; the file holds {', '.join(listed[:20])}")
    _check_size(full)
    found: Any = io.loadmat(full, variable_names=[name], simplify_cells=bool(fields))[name]
    for field in filter(None, fields.split(".")):
        if not isinstance(found, dict) or field not in found:
            held = ", ".join(list(found)[:20]) if isinstance(found, dict) else "no fields"
            raise Rejected("format", f"no field '{field}' in '{name}'; it holds {held}")
        found = found[field]
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
        kind = (
            "a struct: name its field, source.array.signals=NAME.FIELD" if _is_struct(found) else type(found).__name__
        )
        raise Rejected("format", f"'{key or name}' is {kind}, not an array of real numbers")
    return found


def _is_struct(found: Any) -> bool:
    return isinstance(found, dict) or (isinstance(found, np.ndarray) and found.dtype.names is not None)


def _check_size(full: str) -> None:
    """Rejects a file whose compressed elements expand to more than `MAX_BYTES`, without holding what they expand to."""
    with open(full, "rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        total = 0
        while order and len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != _COMPRESSED:
                file.seek(size, 1)
                continue
            unpacker, packed = zlib.decompressobj(), file.read(size)
            while packed and not unpacker.eof:
                total += len(unpacker.decompress(packed, 1 << 20))
                packed = unpacker.unconsumed_tail
                if total > MAX_BYTES:
                    raise Rejected("too_large", f"more than {MAX_BYTES >> 20} MiB when uncompressed")
