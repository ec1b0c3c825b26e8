"""A split of a sharded data set as one array of samples: batches are gathered from the tar files without parsing them.

Shards that were read ahead are memory-mapped, and samples are copied from the mapping. Other shards are read with
`pread`, so that a truncated file or a failing disk raises an error that names the shard, and does not kill the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import operator
import os
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.metadata import Metadata, Partnering
from umbra.errors import UserError
from umbra.parquet import open_samples
from umbra.schema import BLOCK, DTYPE, SPLITS, Geometry, Shard, npy_header, read_manifest

CHUNK = 64  # samples that one thread copies at a time
CHECKERS = 16  # shards checked in parallel when a data set is opened: each check may cross a network
MADV_POPULATE_READ = 22  # Linux 5.14: reads a mapped range from the file sequentially, and reports errors
READ_AHEAD = 1 << 17  # bytes; Linux may shorten a larger read-ahead request
_LIBC = ctypes.CDLL(None)
_FIXES = {
    errno.EMFILE: "; raise `ulimit -n`, or lower data.lanes or data.block_shards",
    errno.EACCES: "; make it readable",
}


class Shards:
    """The samples of one split, 0 to `count - 1`; sample *i* is row `rows[i]` of `samples.parquet`.

    Raises `UserError` for a missing or unfinished data set, a modified manifest, an empty split and, unless the shards
    come `later` or are `excluded` (by name), a shard that is missing, truncated or not of this data set.
    """

    def __init__(self, root: str | Path, split: str, later: bool = False, excluded: Collection[str] = ()) -> None:
        self.root, self.manifest = Path(root), read_manifest(root)
        if split not in SPLITS:
            raise UserError(f"split '{split}' is unknown; use one of {', '.join(SPLITS)}")
        m = self.manifest
        self.split, self.shards = split, m.of_split(split)
        self.counts = tuple(s.samples for s in self.shards)
        self.count = sum(self.counts)
        if not self.count:
            raise UserError(f"{root} has no sample in split '{split}'; build it with a share for that split")
        first = m.first_row(split)
        self.rows = range(first, first + self.count)
        self.resolution_mv = m.resolution_uv / 1000
        self.shape, self._item = (len(m.leads), m.samples), _item(m.geometry)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._held: dict[int, OpenShard] = {}
        if not later:
            used = [i for i, shard in enumerate(self.shards) if shard.name not in excluded]
            with ThreadPoolExecutor(CHECKERS) as pool:
                keys = list(pool.map(self._check, used))
            self._refuse_copies(dict(zip(used, keys)))

    def gather(
        self, indices: NDArray[np.int64], out: NDArray[np.int16], pool: Executor | None = None
    ) -> NDArray[np.int16]:
        """Copies the samples at `indices`, of any shape, into `out`, int16 [..., leads, samples], by threads of `pool`.

        Returns `out`. Raises `UserError` for a shard that is missing, truncated or not readable.
        """
        if not out.flags.c_contiguous or out.dtype != DTYPE or out.shape != (*indices.shape, *self.shape):
            raise ValueError("out must be a contiguous int16 array of as many samples as there are indices")
        whole, items = indices.reshape(-1), out.reshape(-1).view(self._item)
        parts = [slice(at, at + CHUNK) for at in range(0, len(whole), CHUNK)]
        copy = map if pool is None or len(parts) == 1 else pool.map
        list(copy(lambda part: self._copy(whole[part], items[part]), parts))
        return out

    def hold(self, shards: Iterable[int]) -> list[OpenShard]:
        """Keeps these shards open, those that exist, and no others; returns the newly opened ones."""
        wanted = dict.fromkeys(shards)
        new = {s: shard for s in wanted if s not in self._held and (shard := self._open_if_there(s))}
        self._held = {s: shard for s, shard in self._held.items() if s in wanted} | new
        return list(new.values())

    def read_mv(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples at `indices` in mV, float32 [n, leads, samples]."""
        shape = (len(indices), len(self.manifest.leads), self.manifest.samples)
        return self.gather(indices, np.empty(shape, DTYPE)) * np.float32(self.resolution_mv)

    def name_of(self, indices: NDArray[np.int64]) -> list[str]:
        """`SHARD[place]` of the samples at `indices` [n]."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[shards]
        return [f"{self.shards[s].name}[{place}]" for s, place in zip(shards.tolist(), places.tolist())]

    def rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of `samples.parquet` of these samples, of any shape."""
        return indices + self.rows.start

    def indices_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of these rows, which are of the split: the inverse of `rows_of`."""
        return rows - self.rows.start

    def some(self, count: int) -> NDArray[np.int64]:
        """The first `count` samples."""
        return np.arange(count)

    def patients(self) -> NDArray[np.int64]:
        """The patient code of every row of `samples.parquet`, of all splits."""
        codes: NDArray[np.int64] = open_samples(self.root, self.manifest).read(["patient"]).column(0).to_numpy()
        return codes

    def table(self) -> pa.Table:
        """The rows of `samples.parquet` of this split, in sample order."""
        return open_samples(self.root, self.manifest).read().slice(self.rows.start, self.count)

    def metadata(self, folder: str | Path) -> Partnering:
        """The columns of `samples.parquet`, kept in `folder`."""
        return Metadata(self.root, folder)

    def _copy(self, indices: NDArray[np.int64], out: NDArray[np.void]) -> None:
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        places = (indices - self._starts[shards]).tolist()
        held, numbers = self._held, shards.tolist()
        opened = {s: (held.get(s) or self._open(s)).samples for s in set(numbers)}
        rows = map(operator.getitem, map(opened.__getitem__, numbers), places)
        np.concatenate(list(rows), out=out)

    def _check(self, shard: int) -> bytes:
        """The first half of its samples' keys, unique to a shard within a data set; empty if the shard is."""
        file = self._open(shard).samples
        assert isinstance(file, _File)
        return file.key

    def _refuse_copies(self, keys: dict[int, bytes]) -> None:
        first: dict[bytes, int] = {}
        for shard, key in keys.items():
            if key and first.setdefault(key, shard) != shard:
                one, other = self._path(first[key]), self._path(shard)
                raise UserError(
                    f"shards {one} and {other} hold the same samples: one has a wrong name; delete both and run the "
                    "same build again"
                )

    def _open(self, shard: int) -> OpenShard:
        return OpenShard(self._path(shard), self.shards[shard], self.manifest.geometry)

    def _open_if_there(self, shard: int) -> OpenShard | None:
        """Opens a shard if it exists: one that is not in use may be removed at any time to free space for others."""
        try:
            return self._open(shard) if self._path(shard).is_file() else None
        except UserError:
            if self._path(shard).is_file():
                raise
            return None

    def _path(self, shard: int) -> Path:
        return self.root / self.shards[shard].name


class OpenShard:
    """One shard, open for reading; closed with its last reference. `samples[i]` is sample *i*, as one `_item`.

    Raises `UserError` if the shard is missing or not part of this data set, and when a sample cannot be read.
    """

    def __init__(self, path: Path, shard: Shard, geometry: Geometry) -> None:
        self.samples: _File | NDArray[np.void] = _File(path, shard, geometry)

    def read_ahead(self) -> None:
        """Reads the whole shard into memory sequentially and maps it.

        If the system cannot do that, or reading fails, samples are still read one by one, which raises any error.
        """
        file = self.samples
        if isinstance(file, _File):
            with contextlib.suppress(OSError, ValueError):
                self.samples = file.mapped()


def _item(geometry: Geometry) -> np.dtype:
    """A whole sample as one array item. numpy releases the GIL to copy arrays of many items; per sample, that would
    take half as long as the copy itself if another thread waits for the GIL.
    """
    return np.dtype((np.void, geometry.array_bytes))


class _File:
    """The samples of a shard, read one by one with `pread`."""

    def __init__(self, path: Path, shard: Shard, geometry: Geometry) -> None:
        self.path, self.shard, self.geometry = path, shard, geometry
        self.handle, self.key = -1, b""
        try:
            self.handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"shard {path} is missing: run the same build again") from None
        except OSError as error:
            raise UserError(
                f"shard {path} cannot be opened ({error.strerror}){_FIXES.get(error.errno or 0, '')}"
            ) from None
        self._check()

    def __del__(self) -> None:  # not earlier: a thread may be reading
        if self.handle >= 0:
            os.close(self.handle)

    def __getitem__(self, i: int) -> NDArray[np.void]:
        at = self.geometry.first + i * self.geometry.stride
        return np.frombuffer(self._read(at, self.geometry.array_bytes), _item(self.geometry))

    def mapped(self) -> NDArray[np.void]:
        """The samples in memory, [samples, 1]. Raises `OSError` or `ValueError` if that fails."""
        size, stride = self.shard.bytes, self.geometry.stride
        raw = np.frombuffer(mmap.mmap(self.handle, size, prot=mmap.PROT_READ), np.uint8)
        address = ctypes.c_void_p(raw.ctypes.data)
        if sys.platform != "linux" or _LIBC.madvise(address, ctypes.c_size_t(size), MADV_POPULATE_READ):
            for at in range(0, size if hasattr(os, "posix_fadvise") else 0, READ_AHEAD):
                os.posix_fadvise(self.handle, at, READ_AHEAD, os.POSIX_FADV_WILLNEED)
            raise OSError(f"{self.path} cannot be read into memory at once")
        shape, item = (self.shard.samples, 1), _item(self.geometry)
        return np.ndarray(shape, item, raw, self.geometry.first, (stride, item.itemsize))

    def _check(self) -> None:
        size, geometry, count = os.fstat(self.handle).st_size, self.geometry, self.shard.samples
        if size != self.shard.bytes or size != geometry.shard_bytes(count):
            raise UserError(
                f"shard {self.path} has {size} bytes, its manifest says {self.shard.bytes} for {count} samples: it was "
                "truncated or overwritten; delete it and run the same build again"
            )
        for i in {0, count - 1} if count else ():
            head = self._read(i * geometry.stride, geometry.first)
            name, _, _ = head[:100].partition(b"\0")
            if (
                not name.endswith(b"-%06d.ecg.npy" % i)
                or head[257:262] != b"ustar"
                or head[BLOCK:] != npy_header(geometry.leads, geometry.samples)
            ):
                raise UserError(
                    f"shard {self.path} is not part of this data set: its sample {i} does not begin where the manifest "
                    "says; delete it and run the same build again"
                )
            self.key = name[:-15]

    def _read(self, at: int, size: int) -> bytes:
        try:
            data = os.pread(self.handle, size, at)
        except OSError as error:
            raise UserError(f"shard {self.path} cannot be read ({error.strerror}): copy or build it again") from error
        if len(data) != size:
            raise UserError(
                f"shard {self.path} ends within bytes {at} to {at + size}: it was truncated after the start of this "
                "run; delete it and run the same build again"
            )
        return data
