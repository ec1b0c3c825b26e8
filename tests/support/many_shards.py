"""A data set of many shards."""

from pathlib import Path

import numpy as np

from sharding.writer import ShardWriter, metadata_bytes
from umbra.leads import CANONICAL
from umbra.schema import Geometry, Manifest, Shard, fingerprint

COUNTS = (30, 0, 17, 1, 25, 40, 3, 22)


SAMPLES = 96


def many_shards(root: Path, counts=COUNTS, samples=SAMPLES, seed=7, meta=64) -> tuple[Path, np.ndarray]:
    """A data set of noise in several shards; returns its folder and all samples. `meta`: bytes of metadata."""
    root.mkdir(parents=True)
    geometry, leads = Geometry(12, samples, meta), list(CANONICAL)
    data = np.random.default_rng(seed).integers(-999, 999, (sum(counts), 12, samples), "<i2")
    shards, at = [], 0
    for ordinal, count in enumerate(counts):
        path = root / f"train-{ordinal:06d}.tar"
        with open(path, "wb") as file:
            writer = ShardWriter(file, geometry, ordinal)
            for array in data[at : at + count]:
                writer.add(array, metadata_bytes({"a": 1}, meta) or b"")
            digest = writer.close()
        shards.append(Shard(path.name, "train", count, path.stat().st_size, digest))
        at += count
    mark = fingerprint(shards, geometry, 100.0, leads, 1.0)
    manifest = Manifest(mark, 100.0, leads, samples, 1.0, meta, shards, [0.0] * 12, [1.0] * 12, True, "public")
    (root / "manifest.json").write_text(manifest.to_json())
    return root, data
