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

from sharding import build_state, progress
from sharding.finish import RECORDS_HASH, count_cells, moments, new_cells, tables
from sharding.plan import read_plan
from umbra.errors import UserError
from umbra.files import read_text, sha256
from umbra.parquet import AGAIN, Table, open_samples
from umbra.schema import BLOCK, DTYPE, PRIVATE, SAMPLES, Manifest, Shard, npy_header, read_manifest

FIX = "delete it with its private/stats files and the manifest, and run the same build or join again"
FIX_TABLE = "delete it and run the same build or join again"
COPIED = ("patient", "source", "age", "sex", "codes")  # in a sample's metadata and in its table row


def verify(output: Path) -> Manifest:
    """Raises `UserError` naming the first file that does not match the manifest. Checks `private/` if it exists."""
    manifest = read_manifest(output)
    samples = samples_file(output, manifest)
    cells, sums = new_cells(), []
    with progress.bar(sum(s.bytes for s in manifest.shards), "B", "verify") as bar:
        for number, shard in enumerate(manifest.shards):
            rows = samples.group(number)
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
    if (output / PRIVATE).is_dir():
        _verify_records(output, samples)
    return manifest


def samples_file(output: Path, manifest: Manifest) -> Table:
    """`samples.parquet`, one row group per shard. Raises `UserError` if it is not as the manifest says."""
    samples, wanted = open_samples(output, manifest), manifest.tables.get(SAMPLES)
    if manifest.tables and sha256(samples.path) != wanted:
        raise UserError(f"{samples.path} does not have the sha256 in the manifest: {FIX_TABLE}")
    if samples.groups != [s.samples for s in manifest.shards]:
        raise UserError(f"{samples.path} does not have one row group per shard: {FIX_TABLE}")
    return samples


def _verify_shard(output: Path, manifest: Manifest, shard: Shard) -> list[tuple[str, dict[str, Any]]]:
    """Checks a shard and returns (key, metadata) of each sample."""
    path, geometry = output / shard.name, manifest.geometry
    if not path.is_file():
        raise UserError(f"{path} is missing: {AGAIN}")
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
    exact = True
    if any("padded" in meta["flags"] for meta in metas):
        stats = build_state.read_stats(output, shard.name)
        exact = stats is not None
        counts = stats["counts"] if stats else counts
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


def _verify_records(output: Path, samples: Table) -> None:
    """Raises `UserError` if `private/records.parquet` was modified or does not cover every record."""
    path, hash_path = tables(output)[1], output / PRIVATE / RECORDS_HASH
    records, plan = Table(path, AGAIN), read_plan(output)
    if hash_path.is_file() and read_text(hash_path, FIX_TABLE).split()[:1] != [sha256(path)]:
        raise UserError(f"{path} does not have the sha256 in {hash_path.name}: {FIX_TABLE}")
    if _digest(_keys(records)) != _digest(_keys(samples)):
        raise UserError(f"{path}: its kept windows do not match {SAMPLES}: {FIX_TABLE}")
    count = 0
    for group in range(len(records.groups)):  # one per shard, then the records that are in no shard
        names = records.group(group, ["record"]).column("record")
        count += len(names.unique()) if group < len(plan.shards) else len(names)
    if count != plan.records:
        raise UserError(f"{path} covers {count} of {plan.records} records: {FIX_TABLE}")


def _keys(table: Table) -> Iterator[list[str]]:
    for batch in table.batches(["key"]):
        yield batch.column("key").drop_null().to_pylist()


def _digest(parts: Iterator[list[str]]) -> str:
    digest = hashlib.sha256()
    for keys in parts:
        digest.update("".join(f"{key}\n" for key in keys).encode())
    return digest.hexdigest()
