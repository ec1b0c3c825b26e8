"""Small data sets and runs made by hand, for the tests of export, hub, transfer and study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from sharding.writer import ShardWriter, metadata_bytes
from umbra.encoders.encoder import Encoder, EncoderConfig
from umbra.encoders.registry import build_encoder
from umbra.hub import initialise
from umbra.leads import CANONICAL
from umbra.schema import Geometry, Manifest, Shard, fingerprint

RATE, SAMPLES = 100.0, 256
ARGS = {"width": 16, "groups": 4, "embedding": 64}
ENCODER = {"name": "resnet18", "leads": list(CANONICAL), "samples": SAMPLES, "rate": RATE, "args": ARGS}
SCALING = {"mode": "fixed", "mean_mv": [0.0] * 12, "std_mv": [0.5] * 12}
CODES = {"SR": ["426783006"], "AFIB": ["164889003", "SR"], "STACH": ["STACH"]}
# One narrow network of each kind.
SMALL = {
    "resnet18": {"width": 8, "embedding": 24},
    "xresnet1d101": {"width": 8, "groups": 4},
    "vit_s": {"width": 24, "depth": 2, "heads": 2, "patch": 20},
}


def ecg(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Not an ECG, but its class can be told from it: int16 `[12, SAMPLES]` in microvolt."""
    hertz, height = {"SR": (2.0, 300), "AFIB": (11.0, 600), "STACH": (5.0, 1200)}[kind]
    wave = np.sin(2 * np.pi * hertz * np.arange(SAMPLES) / RATE + rng.uniform(0, 6))
    return (height * wave + rng.normal(0, 150, (12, SAMPLES))).astype("<i2")


def make_shards(
    root: Path,
    counts: dict[str, Sequence[str]],
    seed: int = 0,
    first_patient: int = 0,
    codes: dict | None = None,
    shards_of_train: int = 1,
) -> Path:
    """Writes a data set whose splits hold records of these kinds, two neighbours a patient; sexes alternate."""
    rng = np.random.default_rng(seed)
    geometry = Geometry(12, SAMPLES, 64)
    root.mkdir(parents=True)
    shards, rows = [], []
    cut = [
        (split, number, first, kinds[first : first + size])
        for number, (split, kinds) in enumerate(counts.items())
        for size in [len(kinds) // shards_of_train if split == "train" else len(kinds)]
        for first in range(0, len(kinds), size)
    ]
    for ordinal, (split, number, first, kinds) in enumerate(cut):
        name = f"{split}-{first // len(kinds):06d}.tar"
        with open(root / name, "wb") as file:
            writer = ShardWriter(file, geometry, ordinal)
            for i, kind in enumerate(kinds):
                key = writer.add(ecg(kind, rng), metadata_bytes({}, 64) or b"")
                patient = first_patient + 1000 * number + (first + i) // 2
                sex = ("female", "male", None)[patient % 3]
                rows.append((ordinal, i, key, patient, "hand", 50.0, sex, (codes or CODES)[kind]))
            digest = writer.close()
        size = (root / name).stat().st_size
        shards.append(Shard(name, split, len(kinds), size, digest))
    names = ["shard", "index", "key", "patient", "source", "age", "sex", "codes"]
    types = [
        pa.int32(),
        pa.int32(),
        pa.string(),
        pa.int64(),
        pa.string(),
        pa.float32(),
        pa.string(),
        pa.list_(pa.string()),
    ]
    columns = [pa.array(column, type) for column, type in zip(zip(*rows), types)]
    pq.write_table(pa.table(columns, names=names), root / "samples.parquet")
    leads = list(CANONICAL)
    manifest = Manifest(
        fingerprint=fingerprint(shards, geometry, RATE, leads, 1.0),
        rate=RATE,
        leads=leads,
        samples=SAMPLES,
        resolution_uv=1.0,
        meta_bytes=64,
        shards=shards,
        lead_mean_mv=[0.0] * 12,
        lead_std_mv=[0.5] * 12,
        patient_ids=True,
        key_id="public",
    )
    (root / "manifest.json").write_text(manifest.to_json())
    return root


def make_run(run: Path, steps: Sequence[int] = (3, 7), uncommitted: Sequence[int] = (9,), **changes: object) -> Path:
    """Writes a run directory as trainer/pretrain.py leaves it; the weights of step N are drawn from seed N."""
    record = {
        "commit": "abc",
        "versions": {"torch": torch.__version__},
        "wandb_id": "x",
        "fingerprint": "f00d",
        "key_id": "public",
        "encoder": ENCODER,
        "scaling": SCALING,
        "steps": 10,
        "method": "adversarial",
        "status": "finished",
        "data": {"samples": 640, "patients": 320},
    }
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(record | changes))
    for step in [*steps, *uncommitted]:
        checkpoint = run / "checkpoints" / f"step-{step}"
        checkpoint.mkdir(parents=True)
        weights = {f"backbone.{k}": v for k, v in backbone(step).state_dict().items()}
        weights |= {"projector.0.weight": torch.zeros(4, 4), "masker.0.weight": torch.zeros(3)}
        save_file(weights, checkpoint / "weights.safetensors")
        if step in steps:
            (checkpoint / "COMMITTED").touch()
    return run


def backbone(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_encoder(ENCODER["name"], 12, SAMPLES, dict(ENCODER["args"]))


def small_encoder(name: str, rate: float = 100.0, seconds: float = 10.0, seed: int = 0) -> Encoder:
    """A narrow encoder of 12 leads in eval mode, its weights drawn from the seed, as `load_encoder` would give it."""
    architecture = {"name": name, "args": SMALL[name]}
    return initialise(EncoderConfig(architecture, 0, rate, list(CANONICAL), round(rate * seconds), SCALING), seed)


def with_columns(root: Path, target: Path, **columns: object) -> Path:
    """A copy of a handmade data set with these columns of `samples.parquet` added or replaced, a value a row."""
    shutil.copytree(root, target)
    table = pq.read_table(target / "samples.parquet")
    for name, values in columns.items():
        table = table.drop([name]) if name in table.column_names else table
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(list(values)))
    pq.write_table(table, target / "samples.parquet")
    return target
