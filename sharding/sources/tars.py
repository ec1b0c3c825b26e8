"""WebDataset tars with one array per sample: `KEY.EXT` holds the array (npy), `KEY.META` its metadata (JSON).

A tar is scanned once per process, header by header, and indexed by offsets; samples are then read in any order. The key
is the path up to the first dot of the file name, as in webdataset.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from array import array as Numbers
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding import watchdog
from sharding.metadata import TRUE, TableConfig
from sharding.sources import arrays
from sharding.sources.protocol import Head, Recording, Rejected, SourceConfig, contained, files_below, refuse_unused
from umbra.errors import UserError

BLOCK = 512
MAX_EXTRA = 1 << 20
MAX_META = 1 << 20
MAX_NAME = 4096
NPY_HEAD = 1 << 14
CACHED_KEYS = 1 << 22
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
ENDINGS = (".tar", *COMPRESSED)
PLAIN = ("0", "\0", "7")
NOT_PLAIN, TWICE = -1, -2


@dataclass(frozen=True)
class Index:
    """The samples of a tar: `hashes` [n] of their keys, sorted; `places` [n, 4]: offset and bytes of the
    array, offset and bytes of the JSON (0: none; NOT_PLAIN: a link or sparse; TWICE: several members of one name).

    `damage`: (reason, detail) if the scan of the archive ended early.
    """

    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    damage: tuple[str, str] | None


def check(options: SourceConfig) -> None:
    """Raises `UserError` for invalid options."""
    refuse_unused(options, "ids")
    arrays.check_options(options.array, ["rate", "leads"])


def find(root: Path, without: str, options: SourceConfig) -> list[str]:
    """Names `FILE.tar#KEY` of all samples under `root`, sorted; a compressed or damaged tar also as `FILE.tar`.

    Raises `UserError` for options that fit no member.
    """
    found: list[str] = []
    endings: set[str] = set()
    for name in files_below(root, without, ENDINGS):
        watchdog.restart()
        if name.lower().endswith(COMPRESSED):
            found.append(name)
            continue
        try:
            keys, others, index = _scan(contained(root, name), options)
        except (OSError, Rejected):
            found.append(name)
            continue
        endings |= others
        found += {f"{name}#{key}" for key in keys}
        found += [name] if index.damage else []
    ext, meta = _endings(options)
    if endings and not any("#" in name for name in found):
        held = ", ".join(sorted(endings)[:10])
        raise UserError(f"source.array.signals={ext}: no tar holds a member KEY.{ext}; they hold KEY with {held}")
    jsons = sorted(ending for ending in endings if ending.endswith("json"))
    if meta and meta not in endings and jsons:  # without it, each record would count as its own patient
        raise UserError(
            f"source.array.meta={meta}: no tar holds a member KEY.{meta}; they hold KEY with {', '.join(jsons[:10])} "
            "(source.array.meta= reads none)"
        )
    return sorted(found)


def head(root: Path, record: str, options: SourceConfig) -> Head:
    """Reads the array's npy header and the JSON member. See `Head`."""
    check(options)
    file, path, place = _located(root, record, options)
    with open(path, "rb", buffering=0) as tar:
        shape = _array_header(tar.fileno(), place[0], place[1])[0]
        words = _words(_meta(tar.fileno(), place[2], place[3]), options.table)
    samples = arrays.check_shape(shape, options.array, options.array.leads)
    return Head(options.array.rate, samples, list(options.array.leads), [file], words)


def read(root: Path, record: str, wanted: Sequence[str], options: SourceConfig) -> Recording:
    """The leads needed for `wanted`, in millivolts. See `Recording`."""
    _, path, place = _located(root, record, options)
    with open(path, "rb", buffering=0) as tar:
        shape, fortran, kind, start = _array_header(tar.fileno(), place[0], place[1])
        arrays.check_shape(shape, options.array, options.array.leads)
        data = _pread(tar.fileno(), place[0] + start, shape[0] * shape[1] * kind.itemsize)
    values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return arrays.recording(values, wanted, options.array)


def _endings(options: SourceConfig) -> tuple[str, str]:
    """(ending of the array's member, of the JSON member) without leading dot; webdataset ignores their case."""
    signals, meta = options.array.signals or "npy", options.array.meta
    return signals.lower().lstrip("."), meta.lower().lstrip(".")


# ---- one sample ----


def _located(root: Path, record: str, options: SourceConfig) -> tuple[str, str, list[int]]:
    """(tar's name, its path, row of `Index.places`) of a record. Raises `Rejected`."""
    match = re.fullmatch(r"(.*?\.tar)(?:#(.*))?", record, re.IGNORECASE | re.DOTALL)
    if match is None:
        if record.partition("#")[0].lower().endswith(COMPRESSED):
            raise Rejected("format", "a compressed tar has no random access: decompress it to a .tar")
        raise Rejected("header", "a sample of a tar is named FILE.tar#KEY")
    file, key = match.groups()
    path = contained(root, file)
    try:
        index = _index(path, options)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", "tar") from error
    if key is None:
        raise Rejected(*(index.damage or ("header", "a sample of a tar is named FILE.tar#KEY")))
    if key.startswith("/") or ".." in key.replace("\\", "/").split("/"):
        raise Rejected("path", "a member whose name is absolute or leaves its folder")
    code = np.uint64(_hash(key))
    row = int(np.searchsorted(index.hashes, code))
    if row == len(index.hashes) or index.hashes[row] != code:
        raise Rejected("missing_file", "no such member in the tar")
    place = index.places[row].tolist()
    if TWICE in (place[1], place[3]):
        raise Rejected("duplicate_record", "several members of this name in the tar")
    if NOT_PLAIN in (place[1], place[3]):
        raise Rejected("format", "a member that is a link, a device or sparse")
    return file, path, place


def _array_header(file: int, offset: int, size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, offset of the values) of the npy member at `offset`. Raises `Rejected`."""
    stream = io.BytesIO(_pread(file, offset, min(size, NPY_HEAD)))
    try:
        version = np.lib.format.read_magic(stream)
        reading = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = reading[version](stream)
    except KeyError as error:
        raise Rejected("format", "an npy file of a version other than 1 and 2") from error
    except Exception as error:  # numpy evaluates the header as Python: the errors that it raises are not documented
        raise Rejected("header", "not the header of an npy file") from error
    if not (np.issubdtype(kind, np.floating) or np.issubdtype(kind, np.integer)):
        raise Rejected("format", f"an array of {kind}, not of real numbers")
    count = 1
    for length in shape:
        count *= length
    if stream.tell() + count * kind.itemsize > size:
        raise Rejected("truncated", f"an array of shape {shape} in a member of {size} bytes")
    return shape, fortran, kind, stream.tell()


def _meta(file: int, offset: int, size: int) -> dict[str, Any]:
    if not size:
        return {}
    if size > MAX_META:
        raise Rejected("header", "a JSON member of more than a megabyte")
    try:
        meta = json.loads(_pread(file, offset, size))
    except (ValueError, RecursionError) as error:
        raise Rejected("header", "a JSON member that is not valid JSON") from error
    if not isinstance(meta, dict):
        raise Rejected("header", "a JSON member that is not an object")
    return meta


def _words(meta: dict[str, Any], table: TableConfig) -> dict[str, str]:
    """The values of the keys that `table` names: the first that exists; all for `codes`. Lists are joined by `;`."""
    words = {}
    for kind in ("patient", "age", "sex"):
        if name := next((n for n in getattr(table, kind) if n in meta), None):
            words[kind] = _text(meta[name])
    translated = {word.lower(): str(code) for word, code in table.code_values.items()}
    parts = [word for name in table.codes if name in meta for word in re.split(r"[;,|]", _text(meta[name]))]
    codes = [translated.get(word.strip().lower(), word.strip()) for word in parts]
    codes += [str(code) for name, code in table.code_columns.items() if _text(meta.get(name)).lower() in TRUE]
    if codes:
        words["codes"] = ";".join(codes)
    return {kind: word for kind, word in words.items() if word}


def _text(value: Any) -> str:
    if isinstance(value, list | dict):
        return ";".join(_text(item) for item in value if not isinstance(item, list | dict))
    return "" if value is None else str(value).strip()


def _pread(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    if len(data) < size:
        raise Rejected("truncated", f"{len(data)} of {size} bytes")
    return data


# ---- one archive ----

_cache: OrderedDict[tuple[Any, ...], Index] = OrderedDict()


def _index(path: str, options: SourceConfig) -> Index:
    """The index of a tar, cached (LRU, `CACHED_KEYS` samples in total) as long as the file is unchanged."""
    status = os.stat(path)
    known = (path, status.st_mtime_ns, status.st_size, *_endings(options))
    if known not in _cache:
        _cache[known] = _scan(path, options)[2]
        while len(_cache) > 1 and sum(len(index.hashes) for index in _cache.values()) > CACHED_KEYS:
            _cache.popitem(last=False)
    _cache.move_to_end(known)
    return _cache[known]


def _scan(path: str, options: SourceConfig) -> tuple[list[str], set[str], Index]:
    """Scans a tar -> (keys with an array, about 100 of the endings, index). Raises `Rejected` and `OSError`."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Rejected("unreadable", "the tar is not a regular file")
    ext, meta = _endings(options)
    keys: list[str] = []
    endings: set[str] = set()
    arrays, metas = ((Numbers("Q"), Numbers("q"), Numbers("q")) for _ in range(2))
    damage = None
    with open(path, "rb", buffering=0) as tar:
        try:
            for name, kind, offset, size in _members(tar.fileno(), os.fstat(tar.fileno()).st_size):
                key, ending = _split(name)
                if key and (len(endings) < 100 or ending == meta):
                    endings.add(ending)
                if ending not in (ext, meta) or not key:
                    continue
                columns = arrays if ending == ext else metas
                for column, value in zip(columns, (_hash(key), offset, size if kind in PLAIN else NOT_PLAIN)):
                    column.append(value)
                if ending == ext:
                    keys.append(key)
        except Rejected as error:
            damage = (error.reason, error.detail)
    return keys, endings, _joined(_sorted(*arrays), _sorted(*metas), damage)


def _sorted(hashes: Numbers, offsets: Numbers, sizes: Numbers) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hashes, their [n, 2] offset and bytes), sorted, one row per key."""
    unique, first, count = np.unique(np.array(hashes, np.uint64), return_index=True, return_counts=True)
    places = np.stack([np.array(offsets, np.int64), np.array(sizes, np.int64)], axis=1)[first]
    places[count > 1, 1] = TWICE
    return unique, places


def _joined(arrays: tuple[Any, Any], metas: tuple[Any, Any], damage: tuple[str, str] | None) -> Index:
    hashes, places = arrays
    out = np.zeros((len(hashes), 4), np.int64)
    out[:, :2] = places
    _, here, there = np.intersect1d(hashes, metas[0], assume_unique=True, return_indices=True)
    out[here, 2:] = metas[1][there]
    return Index(hashes, out, damage)


def _split(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of a member; no key for files that webdataset skips (`__meta__`, `.hidden`)."""
    if re.match(r"__[^/]*__($|/)", name):
        return "", ""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (f"{folder}{slash}{stem}", ending.lower()) if stem and ending else ("", "")


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


# ---- the tar format: POSIX.1-1988 ustar, GNU's long names and sparse files, POSIX.1-2001 pax ----


def _members(file: int, end: int) -> Iterator[tuple[str, str, int, int]]:
    """(name, type, offset of the data, bytes) of each member. Raises `Rejected` if the tar is truncated or damaged."""
    place = 0
    extra: dict[str, Any] = {}
    while True:
        block = os.pread(file, BLOCK, place)
        if len(block) < BLOCK:
            raise Rejected("truncated", f"no end mark at byte {place}")
        if not any(block):
            return
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise Rejected("header", f"a damaged member header at byte {place}")
        kind, size, data = chr(block[156]), _number(block[124:136]), place + BLOCK
        if kind == "S":
            data = _after_sparse_map(file, block, data)
        size = _decimal(extra["size"]) if "size" in extra else size
        held = 0 if kind in "123456" else size
        if size < 0 or data + held > end:
            raise Rejected("truncated", f"a member that ends {data + held - end} bytes after the archive's end")
        place = data + -(-held // BLOCK) * BLOCK
        if kind in "LKxXg":
            extra |= _extra(file, kind, data, size)
        else:
            yield extra.get("path") or _name(block), "S" if "sparse" in extra else kind, data, held
            extra = {}


def _after_sparse_map(file: int, block: bytes, data: int) -> int:
    """Where the data of a GNU sparse member start: after the blocks that continue its map."""
    more = block[482]
    while more:
        more = _pread(file, data, BLOCK)[504]
        data += BLOCK
    return data


def _extra(file: int, kind: str, offset: int, size: int) -> dict[str, str]:
    """What a long-name or pax header sets for the next member: `path`, `size`, `sparse`."""
    if size > MAX_EXTRA:
        raise Rejected("header", f"a member header of {size} bytes")
    data = _pread(file, offset, size)
    if kind == "L":
        return {"path": _decoded(data)}
    found = {}
    while data and kind in "xX":
        digits = data.partition(b" ")[0]
        length = _decimal(digits[:20].decode("latin-1"))
        if not len(digits) < length <= len(data):
            raise Rejected("header", "a damaged pax header")
        word, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        data = data[length:]
        if word in (b"path", b"size"):
            found[word.decode()] = _decoded(value)
        elif word.startswith(b"GNU.sparse."):
            found["sparse"] = "yes"
    return found


def _name(block: bytes) -> str:
    prefix = _decoded(block[345:500]) if block[257:263] == b"ustar\0" else ""
    name = _decoded(block[:100])
    return f"{prefix}/{name}" if prefix else name


def _decoded(data: bytes) -> str:
    text = data.split(b"\0", 1)[0]
    if len(text) > MAX_NAME:
        raise Rejected("header", f"a member name of {len(text)} bytes")
    return text.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """An octal field, or GNU's base 256. Raises `Rejected`."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * (1 << 8 * (len(field) - 1))
    text = field.split(b"\0", 1)[0].strip()
    if text and not re.fullmatch(rb"[0-7]+", text):
        raise Rejected("header", "a member header with an invalid number")
    return int(text or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise Rejected("header", "a pax header with an invalid number")
    return int(text)
