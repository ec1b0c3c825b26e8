"""Verifies a finished data set from its bytes: hashes, tars, tables, counts and moments."""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding import build_state, progress
from sharding.finish import RECORDS_HASH, count_cells, moments, new_cells, tables
from sharding.plan import read_plan
from umbra.errors import UserError
from umbra.files import sha256
from umbra.schema import (
    BLOCK,
    DTYPE,
    MANIFEST,
    PRIVATE,
    SAMPLES,
    Manifest,
    Shard,
    content_hash,
    fingerprint,
    npy_header,
    read_manifest,
)

FIX = "delete it with its private/stats files and the manifest, and run the same build or join again"
FIX_TABLE = "delete it and run the same build or join again"
COPIED = ("patient", "source", "age", "sex", "codes")  # in a sample's metadata and in its table row


def verify(output: Path) -> Manifest:
    """Raises `UserError` naming the first file that does not match the manifest. Checks `private/` if it exists."""
    manifest = read_manifest(output)
    found = fingerprint(manifest.shards, manifest.geometry, manifest.rate, manifest.leads, manifest.resolution_uv)
    if found != manifest.fingerprint:
        raise UserError(f"{output}: the manifest's fingerprint {manifest.fingerprint} should be {found}")
    samples = samples_file(output, manifest)
    cells, sums = new_cells(), []
    with progress.bar(sum(s.bytes for s in manifest.shards), "B", "verify") as bar:
        for number, shard in enumerate(manifest.shards):
            rows = samples.read_row_group(number)
            members = _verify_shard(output, manifest, shard)
            _compare_rows(output / SAMPLES, rows, members, number)
            count_cells(cells, rows)
            if shard.split == "train":
                sums.append(_sums(output, manifest, shard, rows, [meta for _, meta in members]))
            bar.update(shard.bytes)
    counts = {kind: of_kind.merged() for kind, of_kind in cells.items()}
    if wrong := next((kind for kind in counts if counts[kind] != manifest.counts.get(kind)), ""):
        raise UserError(f"{output}: the manifest's counts by {wrong} do not match the samples: {FIX_TABLE}")
    _compare_moments(output, manifest, sums)
    if manifest.content_hash and manifest.content_hash != content_hash(manifest):
        raise UserError(f"{output / MANIFEST} has been modified since the build: {FIX_TABLE}")
    if (output / PRIVATE).is_dir():
        _verify_records(output, samples)
    return manifest


def samples_file(output: Path, manifest: Manifest) -> pq.ParquetFile:
    """`samples.parquet`, one row group a shard. Raises `UserError` if it is not as the manifest says."""
    path = tables(output)[0]
    if not path.is_file():
        raise UserError(f"{path} is missing: {FIX_TABLE}")
    if manifest.tables and sha256(path) != manifest.tables.get(SAMPLES):
        raise UserError(f"{path} does not have the sha256 in the manifest: {FIX_TABLE}")
    file = pq.ParquetFile(path)
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if rows != [s.samples for s in manifest.shards]:
        raise UserError(
            f"{path} has {sum(rows)} rows for {sum(s.samples for s in manifest.shards)} samples: {FIX_TABLE}"
        )
    return file


def _verify_shard(output: Path, manifest: Manifest, shard: Shard) -> list[tuple[str, dict[str, Any]]]:
    """Checks a shard and returns (key, metadata) of each sample."""
    path, geometry = output / shard.name, manifest.geometry
    if not path.is_file():
        raise UserError(f"{path} is missing: {FIX}")
    if (found := sha256(path)) != shard.sha256:
        raise UserError(f"{path} has sha256 {found[:12]}.., the manifest says {shard.sha256[:12]}..: {FIX}")
    if shard.bytes != geometry.shard_bytes(shard.samples) or path.stat().st_size != shard.bytes:
        raise UserError(f"{path} has the wrong size for {shard.samples} samples: {FIX}")
    header, samples = npy_header(geometry.leads, geometry.samples), []
    with tarfile.open(path) as tar, open(path, "rb") as file:
        for i, member in enumerate(tar):
            start, key = i // 2 * geometry.stride + BLOCK, member.name.partition(".")[0]
            if i % 2 == 0:
                file.seek(start)
                good = member.name == f"{key}.ecg.npy" and member.offset_data == start
                good = good and file.read(len(header)) == header
            else:
                meta = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
                good = member.name == f"{key}.meta.json" and bool(meta)
                samples.append((key, meta))
            if not good:
                raise UserError(f"{path}: member {member.name} is misplaced or malformed: {FIX}")
    return samples


def _compare_rows(path: Path, rows: pa.Table, members: list[tuple[str, dict[str, Any]]], number: int) -> None:
    """Raises `UserError` if a shard's table rows do not match its samples."""
    if len(rows) != len(members):
        raise UserError(f"{path}: {len(rows)} rows for the {len(members)} samples of shard {number}: {FIX_TABLE}")
    for index, (row, (key, meta)) in enumerate(zip(rows.to_pylist(), members)):
        stated = {k: None if row[k] != row[k] else row[k] for k in COPIED}
        if (row["shard"], row["index"], row["key"]) != (number, index, key) or stated != {k: meta[k] for k in COPIED}:
            raise UserError(f"{path}: the row of sample {key} does not match its shard: {FIX_TABLE}")


def _sums(
    output: Path, manifest: Manifest, shard: Shard, rows: pa.Table, metas: list[dict[str, Any]]
) -> dict[str, Any]:
    """Sums, sums of squares and counts of a shard's int16 values, per lead.

    Missing leads are zeros and are not counted. Only the build's stats know the lengths of padded records: without them
    the counts are upper bounds, not `exact`.
    """
    geometry = manifest.geometry
    strides = (geometry.stride, DTYPE.itemsize * geometry.samples, DTYPE.itemsize)
    raw = np.memmap(output / shard.name, np.uint8, "r")
    shape = (shard.samples, geometry.leads, geometry.samples)
    units = np.ndarray(shape, DTYPE, raw, geometry.first, strides)
    sums = units.sum(axis=(0, 2), dtype=np.int64)
    squares = sum(np.square(sample, dtype=np.int32).sum(axis=1, dtype=np.int64) for sample in units)
    there = np.array([[lead in present for lead in manifest.leads] for present in rows.column("leads").to_pylist()])
    counts = (there.sum(axis=0) * geometry.samples).tolist()
    exact, stats = True, build_state.stats_path(output, shard.name)
    if any("padded" in meta["flags"] for meta in metas):
        exact = stats.is_file()
        counts = json.loads(stats.read_text())["counts"] if exact else counts
    return {"sums": sums.tolist(), "squares": np.asarray(squares).tolist(), "counts": counts, "exact": exact}


def _compare_moments(output: Path, manifest: Manifest, sums: list[dict[str, Any]]) -> None:
    """Raises `UserError` if the manifest's moments do not match the shards."""
    total = {key: [sum(values) for values in zip(*(s[key] for s in sums))] for key in ("sums", "squares", "counts")}
    if not all(of_shard["exact"] for of_shard in sums):
        total["counts"] = _implied_counts(manifest, total["squares"], total["counts"])
    for name, found in zip(("lead_mean_mv", "lead_std_mv"), moments([total], manifest.resolution_uv)):
        for lead, value, stated in zip(manifest.leads, found, getattr(manifest, name)):
            if not math.isclose(value, stated, rel_tol=1e-9, abs_tol=1e-12):
                raise UserError(
                    f"{output}: the manifest's {name} of {lead} is {stated:.6g}, the shards' is {value:.6g}"
                )


def _implied_counts(manifest: Manifest, squares: list[int], most: list[int]) -> list[int]:
    """The counts for which the manifest's moments give these sums of squares: if one of the two moments is wrong, the
    other then mismatches."""
    unit = manifest.resolution_uv / 1000.0
    powers = [(m * m + d * d) / (unit * unit) for m, d in zip(manifest.lead_mean_mv, manifest.lead_std_mv)]
    return [min(round(q / p), n) if p else n for q, p, n in zip(squares, powers, most)]


def _verify_records(output: Path, samples: pq.ParquetFile) -> None:
    """Raises `UserError` if `private/records.parquet` was modified or does not cover every record."""
    path, hash_path = tables(output)[1], output / PRIVATE / RECORDS_HASH
    if not path.is_file():
        raise UserError(f"{path} is missing: {FIX_TABLE}")
    if hash_path.is_file() and hash_path.read_text().split()[:1] != [sha256(path)]:
        raise UserError(f"{path} does not have the sha256 in {hash_path.name}: {FIX_TABLE}")
    records, plan = pq.ParquetFile(path), read_plan(output)
    if _digest(_keys(records)) != _digest(_keys(samples)):
        raise UserError(f"{path}: its kept windows do not match {SAMPLES}: {FIX_TABLE}")
    count = 0
    for group in range(records.num_row_groups):  # one per shard, then the records that are in no shard
        names = records.read_row_group(group, columns=["record"]).column("record")
        count += len(names.unique()) if group < len(plan.shards) else len(names)
    if count != plan.records:
        raise UserError(f"{path} covers {count} of {plan.records} records: {FIX_TABLE}")


def _keys(file: pq.ParquetFile) -> Iterator[list[str]]:
    for batch in file.iter_batches(columns=["key"]):
        yield batch.column("key").drop_null().to_pylist()


def _digest(parts: Iterator[list[str]]) -> str:
    digest = hashlib.sha256()
    for keys in parts:
        digest.update("".join(f"{key}\n" for key in keys).encode())
    return digest.hexdigest()
