from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer.data.metadata import Metadata
from trainer.views.random import Key, bits
from umbra.errors import UserError
from umbra.schema import Geometry, Manifest, Shard, fingerprint

#            shard 0           | shard 1 (empty) | shard 2        | shard 3
PATIENTS = [7, 7, 7, 3, 5, 5] + [] + [5, 9, 9, 9, 9] + [-(2**60), 2]
COUNTS = [6, 0, 5, 2]
RUNS = [
    [0, 1, 2],
    [3],
    [4, 5],
    [6],
    [7, 8, 9, 10],
    [11],
    [12],
]  # patient 5 of shard 2 is no neighbour of that of shard 0
LABELS = {
    "age_group": pa.array(["old", "young", None, "old", "old", "young"] + ["old"] * 7),
    "lvef": pa.array([0.5, None] + [0.25] * 11),
    "stage": pa.array([1, 2, None] + [3] * 10, pa.int32()),
    "a/b": pa.array(["x\ny", "z", "z"] + ["x\ny"] * 10),
    "afib": pa.array([True, None] + [False] * 11),
}


def build(root: Path, patients=PATIENTS, counts=COUNTS, labels=LABELS) -> Path:
    geometry = Geometry(2, 40, 64)
    splits = ["train"] * (len(counts) - 1) + ["val"]
    shards = [
        Shard(f"{split}-{i:06d}.tar", split, n, geometry.shard_bytes(n), "0" * 64)
        for i, (split, n) in enumerate(zip(splits, counts))
    ]
    words = (fingerprint(shards, geometry, 100.0, ["I", "II"], 1.0), 100.0, ["I", "II"], 40, 1.0, 64, shards)
    manifest = Manifest(*words, lead_mean_mv=[0.0] * 2, lead_std_mv=[1.0] * 2, patient_ids=True, key_id="public")
    root.mkdir(parents=True)
    (root / "manifest.json").write_text(manifest.to_json())
    columns = {
        "shard": pa.array(np.repeat(np.arange(len(counts)), counts), pa.int32()),
        "key": pa.array([f"k{i}" for i in range(len(patients))]),
        "patient": pa.array(patients, pa.int64()),
        "codes": pa.array([["SR"]] * len(patients)),
        **labels,
    }
    pq.write_table(pa.table(columns), root / "samples.parquet", row_group_size=4)
    return root


@pytest.fixture
def metadata(tmp_path):
    return Metadata(build(tmp_path / "set"), tmp_path / "run")


def test_a_batch_has_patient_index_and_labels_by_row(metadata):
    rows = np.array([[12, 0, 2], [1, 11, 5]])
    batch = metadata.batch(rows)
    assert list(batch) == ["index", "patient", "age_group", "lvef", "stage", "a/b", "afib"]
    assert batch["index"].tolist() == rows.tolist()
    assert batch["patient"].tolist() == [[2, 7, 7], [7, -(2**60), 5]]
    assert batch["patient"].dtype == np.int64
    assert metadata.column("age_group").words == ("old", "young")
    assert batch["age_group"].tolist() == [[0, 0, -1], [1, 0, 1]]
    assert np.array_equal(batch["lvef"], [[0.25, 0.5, 0.25], [np.nan, 0.25, 0.25]], equal_nan=True)
    assert np.array_equal(batch["stage"], [[3, 1, np.nan], [2, 3, 3]], equal_nan=True)
    assert np.array_equal(batch["afib"], [[0, 1, 0], [np.nan, 0, 0]], equal_nan=True)
    assert list(metadata.batch(rows, ["key"])) == ["index", "key"]
    assert metadata.column("a/b").words == ("x\ny", "z")
    assert batch["a/b"].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_columns_are_mapped_from_files_that_later_processes_find(metadata, tmp_path, monkeypatch):
    first = metadata.batch(np.arange(13))
    assert isinstance(metadata.column("patient").values, np.memmap)
    monkeypatch.setattr(pq, "read_table", None)
    again = Metadata(tmp_path / "set", tmp_path / "run")
    assert again.column("age_group").words == ("old", "young")
    for name, values in again.batch(np.arange(13)).items():
        assert np.array_equal(values, first[name], equal_nan=values.dtype.kind == "f")


def test_a_partner_is_another_sample_of_the_patient_and_each_as_likely(metadata):
    rows = np.arange(13)
    seen = {int(r): Counter() for r in rows}
    for epoch in range(600):
        for row, partner in enumerate(metadata.partners(rows, 3, epoch)):
            seen[row][int(partner)] += 1
    for run in RUNS:
        for row in run:
            others = [r for r in run if r != row] or [row]
            assert set(seen[row]) == set(others)
            share = 600 / len(others)
            assert all(abs(n - share) < 5 * share**0.5 for n in seen[row].values())


def test_the_draw_is_a_function_of_seed_epoch_and_row(metadata):
    rows = np.tile(np.arange(7, 11), 5).reshape(2, 10)
    one = metadata.partners(rows, 1, 4)
    assert one.shape == rows.shape
    assert np.array_equal(one.ravel(), metadata.partners(rows.ravel()[::-1], 1, 4)[::-1])
    others = [metadata.partners(np.arange(7, 11), s, e).tolist() for s in range(4) for e in range(4)]
    assert len({tuple(o) for o in others}) > 8
    word = int(bits(Key(1, 4, torch.tensor([8])), "partner")[0])
    assert metadata.partners(np.array([8]), 1, 4)[0] == [7, 9, 10][word * 3 >> 32]


def test_many_rows_at_once(tmp_path):
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(3000), rng.integers(1, 4, 3000))
    metadata = Metadata(build(tmp_path / "s", patients, [len(patients), 0], {}), tmp_path / "r")
    assert metadata.labels == []
    rows = rng.integers(0, len(patients), 4096)
    partners = metadata.partners(rows, 0, 0)
    assert np.array_equal(patients[partners], patients[rows])
    alone = np.bincount(patients)[patients[rows]] == 1
    assert np.array_equal(partners == rows, alone)


def test_what_cannot_be_read_is_named(metadata, tmp_path):
    with pytest.raises(UserError, match=r"no column 'sex'; known: shard, "):
        metadata.column("sex")
    with pytest.raises(UserError, match=r"column 'codes' is of type list"):
        metadata.column("codes")
    root = tmp_path / "set"
    table = pq.read_table(root / "samples.parquet")
    pq.write_table(table.slice(1), root / "samples.parquet")
    with pytest.raises(UserError, match="has 12 rows for 13 samples of its manifest"):
        Metadata(root, tmp_path / "run")
    (root / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        Metadata(root, tmp_path / "run")
    (root / "samples.parquet").unlink()
    with pytest.raises(UserError, match="is missing: run the same build again"):
        Metadata(root, tmp_path / "run")


def test_another_data_set_does_not_find_the_columns_of_this_one(metadata, tmp_path):
    metadata.column("patient")
    other = build(tmp_path / "other", [1] * 13, [13, 0], {})
    assert Metadata(other, tmp_path / "run").column("patient").values.tolist() == [1] * 13
