"""The on-disk format of a data set: `manifest.json`, the geometry of a shard, the columns of `samples.parquet`.

A shard is a standard tar of pairs `KEY.ecg.npy` + `KEY.meta.json`. All pairs have the same size, so the int16
array of sample *i* starts at byte `first + i * stride` and a shard can be memory-mapped as `[n, leads, samples]`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from umbra.errors import UserError
from umbra.files import damaged, read_json
from umbra.typed import typed

SCHEMA_VERSION = 1
BLOCK = 512
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
PRIVATE = "private"
JOIN = "join.json"  # in `private/` of a joined data set
SAMPLE_COLUMNS = ("shard", "index", "key", "patient", "source", "age", "sex", "codes", "leads")
DTYPE = np.dtype("<i2")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def npy_header(leads: int, samples: int) -> bytes:
    """The header bytes that `np.save` writes before an int16 array `[leads, samples]`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": DTYPE.str, "fortran_order": False, "shape": (leads, samples)}
    )
    return buffer.getvalue()


@dataclass(frozen=True)
class Geometry:
    """Byte layout of a shard: the int16 array of sample *i* starts at byte `first + i * stride`."""

    leads: int
    samples: int
    meta_bytes: int

    @property
    def array_bytes(self) -> int:
        return self.leads * self.samples * DTYPE.itemsize

    @property
    def npy_bytes(self) -> int:
        return len(npy_header(self.leads, self.samples)) + self.array_bytes

    @property
    def first(self) -> int:
        return BLOCK + len(npy_header(self.leads, self.samples))

    @property
    def stride(self) -> int:
        return BLOCK + _padded(self.npy_bytes) + BLOCK + _padded(self.meta_bytes)

    def shard_bytes(self, count: int) -> int:
        """Bytes of a shard of `count` samples, including the two zero blocks that end a tar."""
        return count * self.stride + 2 * BLOCK


@dataclass(frozen=True)
class Shard:
    """One tar: its name, split, number of samples, size in bytes and sha256."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`, which is written last: without it the data set is incomplete.

    `rate` in Hz, `samples` per lead and window, `resolution_uv` microvolts per int16 unit, `lead_mean_mv` and
    `lead_std_mv` over the train split; row *i* of `samples.parquet` is sample *i* of `shards`, in order. `key_id`: the
    public name of the pseudonym key (of a joined set: of all keys, with + between). `tables`: the sha256 of
    `samples.parquet`, `content_hash`: that of all other fields (both empty in data sets written before these fields
    existed).
    """

    fingerprint: str
    rate: float
    leads: list[str]
    samples: int
    resolution_uv: float
    meta_bytes: int
    shards: list[Shard]
    lead_mean_mv: list[float]
    lead_std_mv: list[float]
    patient_ids: bool
    key_id: str
    counts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    content_hash: str = ""

    @property
    def geometry(self) -> Geometry:
        return Geometry(len(self.leads), self.samples, self.meta_bytes)

    @property
    def patient_keys(self) -> set[tuple[str, str]]:
        """The source names of a data set, of each part of a joined one, with the id of the key of their pseudonyms."""
        own = {"name": self.config.get("source", {}).get("name", ""), "key_id": self.key_id}
        return {(str(part.get("name", "")), str(part.get("key_id", ""))) for part in self.config.get("parts") or [own]}

    def of_split(self, split: str) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def first_row(self, split: str) -> int:
        """The first row of `split` in `samples.parquet` (the shards of a split are contiguous)."""
        return sum(s.samples for s in self.shards[: next(i for i, s in enumerate(self.shards) if s.split == split)])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


def content_hash(manifest: Manifest) -> str:
    """sha256 over all fields of a manifest except `content_hash`."""
    return hashlib.sha256(dataclasses.replace(manifest, content_hash="").to_json().encode()).hexdigest()


def fingerprint(shards: list[Shard], geometry: Geometry, rate: float, leads: list[str], resolution_uv: float) -> str:
    """Hash over the shards' hashes and the geometry: equal if and only if the samples and their order are."""
    content = [[s.name, s.samples, s.sha256] for s in shards]
    content.append([geometry.leads, geometry.samples, geometry.meta_bytes, float(rate), leads, float(resolution_uv)])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def fingerprint_of(m: Manifest) -> str:
    """The fingerprint that a manifest should have."""
    return fingerprint(m.shards, m.geometry, m.rate, m.leads, m.resolution_uv)


def read_manifest(root: str | Path) -> Manifest:
    """Reads `root/manifest.json`.

    Raises `UserError` if it is missing, damaged, modified since the build or of another schema version.
    """
    path = Path(root) / MANIFEST
    command = "join" if (Path(root) / PRIVATE / JOIN).is_file() else "build"
    if Path(root).is_file():
        raise UserError(f"{root} is a file: name the folder of the data set, that holds {MANIFEST}")
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: {root} is not a finished data set; "
            f"run `python -m sharding {command}` to completion"
        )
    fix = f"delete it and run the same {command} again"
    content = read_json(path, fix)
    if "schema" not in content:
        raise damaged(path, "it lacks 'schema'", fix)
    if (version := content["schema"]) != SCHEMA_VERSION:
        raise UserError(f"{path} has schema {version}, this version reads {SCHEMA_VERSION}: build the data set again")
    try:
        manifest = typed(Manifest, content)
        _check(manifest)
    except ValueError as error:
        raise damaged(path, error, fix) from error
    if manifest.fingerprint != fingerprint_of(manifest):
        raise UserError(f"{path} does not match its own fingerprint: {fix}")
    if manifest.content_hash and manifest.content_hash != content_hash(manifest):
        raise UserError(f"{path} has been modified since the build: {fix}")
    return manifest


def _check(m: Manifest) -> None:
    """Raises `ValueError` for values that no build writes."""
    for key in ("rate", "samples", "resolution_uv", "meta_bytes"):
        if getattr(m, key) <= 0:
            raise ValueError(f"'{key}' is {getattr(m, key)}")
    for key in ("lead_mean_mv", "lead_std_mv"):
        if not len(getattr(m, key)) == len(m.leads) > 0:
            raise ValueError(f"'{key}' has {len(getattr(m, key))} values for {len(m.leads)} leads")
    for shard in m.shards:
        if shard.split not in SPLITS or min(shard.samples, shard.bytes) < 0:
            raise ValueError(f"shard {shard.name} has split {shard.split!r}, {shard.samples} samples")
    runs = [split for split, _ in itertools.groupby(shard.split for shard in m.shards)]
    if len(set(runs)) < len(runs):
        raise ValueError("the shards of a split are not contiguous")
