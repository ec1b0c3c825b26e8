"""Several data sets read as one, through their real shards."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.handmade import make_shards
from tests.support.many_shards import SAMPLES, many_shards
from trainer.config import BatchConfig, DataConfig, PretrainConfig
from trainer.data.mixture import Mixture, Source
from trainer.data.shards import Shards
from trainer.data.sources import Sources, in_common, opened
from trainer.data.stream import Stream
from trainer.run.mixed import make_mixture
from umbra.errors import UserError
from umbra.schema import Manifest, read_manifest

COUNTS = {"a": (9, 0, 14, 6), "b": (8, 8, 8), "c": (20, 3)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three data sets of noise, with metadata of other sizes, and all their samples."""
    root = tmp_path_factory.mktemp("sets")
    made = {n: many_shards(root / n, counts, seed=ord(n), meta=64 * ord(n)) for n, counts in COUNTS.items()}
    return {name: path for name, (path, _) in made.items()}, np.concatenate([data for _, data in made.values()])


def config_of(sets: dict[str, Path], **more) -> DataConfig:
    return DataConfig(path={name: str(path) for name, path in sets.items()}, **more)


def test_the_loader_gives_the_samples_that_the_order_says_of_all_sources(sets):
    places, data = sets
    shards = opened(config_of(places), "train")
    sources = tuple(Source(n, counts, share, 3) for (n, counts), share in zip(COUNTS.items(), (3, 1, 2)))
    mixture = Mixture(sources, 1, 12, 2, 2, 2)
    batches = list(Stream(shards, mixture, 0, 70, 0, 1, torch.device("cpu"), threads=3))
    assert len(batches) == 70
    for batch in batches:
        assert batch.signals.shape == (2, 6, 12, SAMPLES)
        assert np.array_equal(batch.signals.numpy(), data[mixture.step(batch.step)])
        assert np.array_equal(shards.indices_of(batch.host_rows), mixture.step(batch.step))
    halves = [Stream(shards, mixture, 40, 50, rank, 2, torch.device("cpu")) for rank in (0, 1)]
    for step, both in enumerate(zip(*halves), 40):
        assert torch.equal(torch.cat([half.signals for half in both], 1), batches[step].signals)


def test_a_shard_is_called_by_its_source(sets):
    places, data = sets
    shards = opened(config_of(places), "train")
    assert isinstance(shards, Sources)
    assert shards.count == len(data)
    assert shards.name_of(np.array([0, 28, 29, 29 + 23, 29 + 24])) == [
        "a/train-000000.tar[0]", "a/train-000003.tar[5]", "b/train-000000.tar[0]", "b/train-000002.tar[7]",
        "c/train-000000.tar[0]",
    ]  # fmt: skip
    assert [shards.part_of(n) for n in (0, 3, 4, 6, 7)] == [("a", 0), ("a", 3), ("b", 0), ("b", 2), ("c", 0)]
    assert len(opened(config_of(places, weights={"b": 0}), "train").shards) == 6


def test_a_damaged_shard_is_named_and_stops_no_start_once_excluded(sets, tmp_path):
    places = sets[0] | {"b": many_shards(tmp_path / "b", (5, 5), seed=3)[0]}
    (tmp_path / "b" / "train-000001.tar").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"data.path.b: shard .*train-000001.tar has 3 bytes"):
        opened(config_of(places), "train")
    assert opened(config_of(places, exclude=["b/train-000001.tar"]), "train").count == 29 + 10 + 23


def manifest_of(**changes) -> Manifest:
    words = ("f", 100.0, ["I", "II"], 500, 1.0, 64, [], [0.5, 1.0], [1.0, 2.0], True, "k")
    return replace(Manifest(*words), **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 500.0, "samples": 2500}, "one has rate=100, two has rate=500, .*: build two again with rate=100 "),
        ({"samples": 250}, "one has seconds=5, two has seconds=2.5, "),
        ({"leads": ["II", "I"]}, r"one has leads=\[I,II\], two has leads=\[II,I\], "),
        ({"resolution_uv": 5.0}, "two has resolution_uv=5, "),
    ],
)
def test_sources_that_are_not_alike_are_one_line_that_names_both(change, said):
    manifests = {"one": manifest_of(), "two": manifest_of(fingerprint="g", **change)}
    with pytest.raises(UserError, match=f"data.path: .*{said}"):
        in_common(manifests, {"one": 1, "two": 1})


def test_one_data_set_twice_is_refused(sets, tmp_path):
    (tmp_path / "copy").symlink_to(sets[0]["a"])
    with pytest.raises(UserError, match=r"data.path: a and z are one data set \(.*\): leave one out"):
        opened(config_of(sets[0] | {"z": tmp_path / "copy"}), "train")


def test_mean_and_deviation_are_those_of_the_mixed_samples():
    rng = np.random.default_rng(0)
    drawn = {"one": rng.normal(1, 2, (2, 30000)), "two": rng.normal(-3, 1, (2, 10000))}
    manifests = {
        name: manifest_of(fingerprint=name, lead_mean_mv=x.mean(1).tolist(), lead_std_mv=x.std(1).tolist())
        for name, x in drawn.items()
    }
    joint = in_common(manifests, {"one": 3, "two": 1})
    together = np.concatenate(list(drawn.values()), axis=1)
    assert np.allclose(joint.lead_mean_mv, together.mean(1))
    assert np.allclose(joint.lead_std_mv, together.std(1))
    assert (joint.fingerprint, joint.key_id) == ("one+two", "k")


@pytest.fixture
def with_patients(tmp_path):
    """Two sets with held-out samples and patients 0, 0, 1, 1, ... in each."""
    counts = {"val": ["SR"] * 4, "train": ["SR"] * 10}
    return {name: make_shards(tmp_path / name, counts, seed) for seed, name in enumerate("xy")}


def other_key(root: Path) -> None:
    manifest = replace(read_manifest(root), key_id="other")
    (root / "manifest.json").write_text(manifest.to_json())


def test_patients_of_two_sources_are_the_same_only_under_one_key(with_patients):
    shards = opened(config_of(with_patients), "train")
    codes = shards.patients()
    own = pq.read_table(with_patients["x"] / "samples.parquet")["patient"].to_numpy()
    assert codes.tolist() == [*own, *own]
    other_key(with_patients["y"])
    codes = opened(config_of(with_patients), "train").patients()
    assert codes[:14].tolist() == own.tolist()
    assert not set(codes[:14]) & set(codes[14:])
    assert len(set(codes)) == 2 * len(set(own))


def test_a_source_of_weight_0_is_as_if_it_were_not_named(with_patients, tmp_path):
    """By the sizes of the others, where no weight is given; in the schedule and in the scaling."""
    places = with_patients | {"z": make_shards(tmp_path / "z", {"train": ["SR"] * 30}, 9)}
    for given, shares in (({}, (1, 3)), ({"z": 5.0}, (1, 5))):
        left = config_of(places, weights={"y": 0.0, **given})
        never = config_of({name: places[name] for name in "xz"}, weights=given)
        cfgs = [PretrainConfig(data=data, batch=BatchConfig(global_=12)) for data in (left, never)]
        for cfg in cfgs:
            train = opened(cfg.data, "train")
            assert make_mixture(cfg, train, {}, 2).schedule.shares == shares
            assert list(train.weights.values()) == [shares[0] * (1 if given else 10), shares[1] * (1 if given else 10)]


def test_a_partner_is_of_the_same_patient_and_source(with_patients, tmp_path):
    shards = opened(config_of(with_patients), "train")
    rows = shards.rows_of(np.arange(shards.count))
    partners = shards.metadata(tmp_path / "columns").partners(rows, 0, 5)
    codes = shards.patients()
    assert (partners != rows).all()
    assert ((partners < 14) == (rows < 14)).all()
    assert np.array_equal(codes[partners], codes[rows])
    assert sorted(shards.indices_of(partners)) == sorted(range(20))


def test_held_out_samples_are_of_every_source_that_has_them(with_patients, sets, tmp_path):
    only = make_shards(tmp_path / "m", {"train": ["SR"] * 6}, 9)
    places = {"m": only, **with_patients}
    train, heldout = (opened(config_of(places), split) for split in ("train", "val"))
    assert heldout.some(4).tolist() == [0, 1, 4, 5]
    assert heldout.some(5).tolist() == [0, 1, 4, 5, 6]
    rows = heldout.rows_of(heldout.some(8))
    assert rows.tolist() == [6, 7, 8, 9, 20, 21, 22, 23]
    assert np.array_equal(heldout.indices_of(rows), heldout.some(8))
    x = Shards(places["x"], "val").read_mv(np.arange(4))
    assert np.array_equal(heldout.read_mv(np.arange(4)), x)
    assert train.patients()[rows].tolist() == [*Shards(places["x"], "val").patients()[:4]] * 2
    with pytest.raises(UserError, match=r"no source of data.path has a sample in split 'test'"):
        opened(config_of(places), "test")


def test_the_tables_of_sources_with_other_columns_are_read_as_one(with_patients):
    path = with_patients["y"] / "samples.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("lvef", pa.array([0.5] * len(table))), path)
    table = opened(config_of(with_patients), "train").table()
    assert table["lvef"].to_pylist() == [None] * 10 + [0.5] * 10
    assert json.dumps(table["key"].to_pylist()[:1])
