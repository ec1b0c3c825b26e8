import json
import os
import subprocess

import numpy as np
import pytest

from tests.support.handmade import make_run, make_shards
from trainer.data.shards import Shards
from trainer.evaluate import store as module
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.store import Store, folder_of, weights_hash
from trainer.evaluate.task import Labelled
from trainer.export import export
from umbra.directory import read_config
from umbra.files import TEMPORARY
from umbra.hub import initialise, load_encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def encoder(place):
    return load_encoder(export(make_run(place / "run")))


@pytest.fixture(scope="module")
def shards(place):
    return Shards(
        make_shards(place / "d", {"train": ["SR", "AFIB"] * 8, "val": ["SR"] * 4, "test": ["SR"] * 2}), "train"
    )


def records(shards, *index):
    index = np.array(index)
    return Labelled(shards, index, np.zeros((len(index), 1), np.float32), index)


@pytest.fixture
def counted(monkeypatch):
    """How many records were given to the encoder, call by call."""
    counts, embed = [], module.embed
    monkeypatch.setattr(module, "embed", lambda e, part, batch: counts.append(len(part)) or embed(e, part, batch))
    return counts


def test_each_record_is_computed_once_and_read_by_the_next(encoder, shards, tmp_path, counted):
    first = Store(encoder, 4, tmp_path)
    a, b = first.of(records(shards, 1, 2, 3), records(shards, 3, 5))
    np.testing.assert_array_equal(a[2], b[0])
    assert counted == [3, 1]
    second = Store(encoder, 4, tmp_path)
    (c,) = second.of(records(shards, 5, 2, 7))
    assert counted == [3, 1, 1]
    np.testing.assert_array_equal(c[0], b[1])
    np.testing.assert_array_equal(c[1], a[1])
    (whole,) = Store(encoder, 4, None).of(records(shards, 5, 2, 7))
    np.testing.assert_allclose(c, whole, rtol=1e-4, atol=1e-5)
    assert first.notes == second.notes == []


def test_features_of_other_weights_or_data_are_not_used(encoder, shards, tmp_path, counted):
    mine = Store(encoder, 4, tmp_path)
    mine.of(records(shards, 1, 2))
    other = Store(initialise(encoder.config, 3), 4, tmp_path)
    assert other.key != mine.key
    other.of(records(shards, 1, 2))
    assert counted == [2, 2]
    mine.path.write_bytes(other.path.read_bytes())
    stale = Store(encoder, 4, tmp_path)
    stale.of(records(shards, 1, 2))
    assert counted == [2, 2, 2]
    assert "is of another encoder or data set" in stale.notes[0]


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"x" * 500])
def test_a_damaged_file_is_computed_anew(encoder, shards, tmp_path, counted, damage):
    mine = Store(encoder, 4, tmp_path)
    mine.of(records(shards, 1, 2))
    mine.path.write_bytes(damage)
    again = Store(encoder, 4, tmp_path)
    again.of(records(shards, 1, 2))
    assert counted == [2, 2]
    assert "is damaged" in again.notes[0]
    Store(encoder, 4, tmp_path).of(records(shards, 1, 2))
    assert counted == [2, 2]


def test_what_a_killed_one_left_is_removed(encoder, shards, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f"x.safetensors{TEMPORARY}{os.uname().nodename}-{dead.pid}").write_bytes(b"half")
    store = Store(encoder, 4, tmp_path)
    store.of(records(shards, 1))
    assert list(tmp_path.iterdir()) == [store.path]
    assert not store.notes


def test_where_nothing_can_be_written_features_are_computed_all_the_same(encoder, shards, tmp_path):
    (tmp_path / "taken").write_text("mine")
    store = Store(encoder, 4, tmp_path / "taken")
    assert store.of(records(shards, 1))[0].shape == (1, encoder.config.dim)
    assert "features are not kept" in store.notes[0]


def test_the_key_is_of_weights_and_scaling_not_of_the_documented_origin(encoder, place, tmp_path):
    config = json.loads((place / "run" / "encoder" / "config.json").read_text())
    assert weights_hash(encoder) == weights_hash(load_encoder(place / "run" / "encoder"))
    for key, value, same in (
        ("training", {"steps": 1}, True),
        ("scaling", config["scaling"] | {"mode": "record"}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        other = initialise(read_config(tmp_path), 0)
        assert (weights_hash(other) == weights_hash(initialise(encoder.config, 0))) is same


def test_features_lie_beside_a_local_encoder_and_nowhere_else(tmp_path):
    (tmp_path / "encoder").mkdir()
    assert folder_of(TransferConfig(encoder=str(tmp_path / "encoder"))) == tmp_path / "encoder-features"
    for name in ("random", "owner/name"):
        assert folder_of(TransferConfig(encoder=name)) is None
    assert folder_of(TransferConfig(encoder=str(tmp_path / "encoder"), features="none")) is None
    assert str(folder_of(TransferConfig(encoder="random", features="here"))) == "here"
