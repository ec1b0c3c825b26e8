"""Writes tars of fixed stride whose bytes depend only on their content."""

from __future__ import annotations

import hashlib
import json
import tarfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from umbra.schema import BLOCK, DTYPE, Geometry, npy_header

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def metadata_bytes(meta: dict[str, Any], size: int) -> bytes | None:
    """`meta` as JSON padded with spaces to `size` bytes; None if it does not fit."""
    text = _JSON.encode(meta).encode()
    return text.ljust(size) if len(text) <= size else None


def key(ordinal: int, index: int) -> str:
    """`SSSSSS-NNNNNN`: ordinal of the planned shard over all splits, and index in it."""
    return f"{ordinal:06d}-{index:06d}"


class ShardWriter:
    """Appends samples of one geometry to a tar and hashes it. `close` ends the archive."""

    def __init__(self, file: BinaryIO, geometry: Geometry, ordinal: int):
        self._file, self.geometry, self._ordinal = file, geometry, ordinal
        self._npy = npy_header(geometry.leads, geometry.samples)
        self._npy_padding = _padding(geometry.npy_bytes)
        self._heads = {s: _blank_header(key(ordinal, 0), s, n) for s, n in self._members().items()}
        self._hash = hashlib.sha256()
        self.count = 0

    def _members(self) -> dict[str, int]:
        return {".ecg.npy": self.geometry.npy_bytes, ".meta.json": self.geometry.meta_bytes}

    def add(self, array: NDArray[np.int16], meta: bytes) -> str:
        """Writes one sample, int16 `[leads, samples]` and its padded metadata; returns its key."""
        if array.shape != (self.geometry.leads, self.geometry.samples) or array.dtype != DTYPE:
            raise AssertionError(f"array {array.dtype} {array.shape} does not fit {self.geometry}")
        if len(meta) != self.geometry.meta_bytes:
            raise AssertionError(f"metadata of {len(meta)} bytes does not fit {self.geometry}")
        name = key(self._ordinal, self.count)
        self._write(
            self._head(name, ".ecg.npy"),
            self._npy,
            array.tobytes(),
            self._npy_padding,
            self._head(name, ".meta.json"),
            meta,
            _padding(len(meta)),
        )
        self.count += 1
        return name

    def _head(self, name: str, suffix: str) -> bytes:
        """The tar header of a member with this sample's name and the matching checksum."""
        rest, total = self._heads[suffix]
        word = name.encode()
        checksum = b"%06o\0 " % (total + sum(word))
        return word + rest[len(word) : 148] + checksum + rest[156:]

    def _write(self, *parts: bytes) -> None:
        data = b"".join(parts)
        self._hash.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Writes the two zero blocks that end a tar; returns the sha256 of the whole file."""
        self._write(bytes(2 * BLOCK))
        return self._hash.hexdigest()


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _blank_header(name: str, suffix: str, size: int) -> tuple[bytes, int]:
    """(the header of a member `name + suffix`, its checksum without the name)."""
    info = tarfile.TarInfo(name + suffix)
    info.size = size
    head = info.tobuf(format=tarfile.USTAR_FORMAT)
    return head, int(head[148:154], 8) - sum(name.encode())
