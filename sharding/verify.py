"""Re-reads a finished data set: hashes, tar structure, geometry, tables, fingerprint."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from sharding import progress
from sharding.config import UserError
from sharding.schema import BLOCK, SAMPLES, Manifest, Shard, fingerprint, npy_header, read_manifest


def verify(output: Path) -> Manifest:
    """Raises `UserError` naming the first file that is not as the manifest says."""
    manifest = read_manifest(output)
    with progress.bar(sum(s.bytes for s in manifest.shards), "B", "verify") as bar:
        for shard in manifest.shards:
            _verify_shard(output, manifest, shard)
            bar.update(shard.bytes)
    rows = pq.ParquetFile(output / SAMPLES).metadata.num_rows if (output / SAMPLES).is_file() else 0
    if rows != sum(s.samples for s in manifest.shards):
        raise UserError(
            f"{output / SAMPLES} has {rows} rows, the shards {sum(s.samples for s in manifest.shards)} samples"
        )
    found = fingerprint(manifest.shards, manifest.geometry, manifest.rate, manifest.leads, manifest.resolution_uv)
    if found != manifest.fingerprint:
        raise UserError(f"{output}: the manifest's fingerprint {manifest.fingerprint} should be {found}")
    return manifest


def _verify_shard(output: Path, manifest: Manifest, shard: Shard) -> None:
    path = output / shard.name
    mend = "delete it with its private/stats files and the manifest, and run the same build again"
    if not path.is_file():
        raise UserError(f"{path} is missing: {mend}")
    with open(path, "rb") as file:
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != shard.sha256:
            raise UserError(f"{path} has sha256 {found[:12]}.., the manifest says {shard.sha256[:12]}..: {mend}")
    geometry = manifest.geometry
    if shard.bytes != geometry.shard_bytes(shard.samples) or path.stat().st_size != shard.bytes:
        raise UserError(f"{path} has another size than its {shard.samples} samples need: {mend}")
    header = npy_header(geometry.leads, geometry.samples)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        for i, member in enumerate(tar):
            start = i // 2 * geometry.stride + BLOCK
            if i % 2 == 0:
                file.seek(start)
                good = (
                    member.name.endswith(".ecg.npy")
                    and member.offset_data == start
                    and file.read(len(header)) == header
                )
            else:
                good = member.name.endswith(".meta.json") and bool(json.loads(tar.extractfile(member).read()))  # type: ignore[union-attr]
            if not good:
                raise UserError(f"{path}: member {member.name} is not where or what it should be: {mend}")
