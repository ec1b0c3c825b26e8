"""Reads a W&B offline run: a log of LevelDB's framing, each entry one protobuf `Record` of wandb's.

Layout: 4 bytes `:W&B`, 2 bytes magic, 1 byte version; then blocks of 32 KiB (counted from the file's first byte) of
chunks: crc (4 bytes, little endian), length (2), kind (1), content. Kinds: 1 whole entry, 2 its first part, 3 a middle
one, 4 the last. Fewer than 7 bytes at the end of a block are padding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")
HEADER = 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """`rows`: history in order; `config`, `summary`: as logged; `records`: every protobuf record, in order."""

    records: list[Any] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def entries(content: bytes) -> Iterator[bytes]:
    """The entries of the log; one that the end of the file cuts is left out."""
    if content[:4] != b":W&B":
        raise ValueError("not a W&B offline run")
    at, parts = HEADER, []
    while at + CHUNK.size <= len(content):
        room = BLOCK - at % BLOCK
        if room < CHUNK.size:
            at += room
            continue
        _, length, kind = CHUNK.unpack_from(content, at)
        chunk = content[at + CHUNK.size : at + CHUNK.size + length]
        at += CHUNK.size + length
        if len(chunk) < length:
            return
        if kind in (WHOLE, FIRST):
            parts = []
        parts.append(chunk)
        if kind in (WHOLE, LAST):
            yield b"".join(parts)


def read_offline(path: Path) -> OfflineRun:
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for entry in entries(path.read_bytes()):
        record = Record.FromString(entry)
        run.records.append(record)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.rows.append(_values(record.history.item))
        elif kind == "run":
            run.config.update(_values(record.run.config.update))
        elif kind == "config":
            run.config.update(_values(record.config.update))
        elif kind == "summary":
            run.summary.update(_values(record.summary.update))
    return run


def offline_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = values
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values
