import io

import numpy as np
import pytest
import torch
import webdataset as wds

from tests.support.handmade import make_shards
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Stream, millivolts
from umbra.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("d") / "s", {"train": ["SR", "AFIB"] * 12, "val": ["SR"] * 4})


def test_a_gather_equals_what_webdataset_reads(root):
    shards = Shards(root, "train")
    source = wds.WebDataset(str(root / "train-000000.tar"), shardshuffle=False)
    arrays = np.stack([np.load(io.BytesIO(sample["ecg.npy"])) for sample in source])
    indices = np.random.default_rng(0).permutation(shards.count)[:17]
    got = shards.gather(indices, np.empty((17, *arrays.shape[1:]), "<i2"))
    assert np.array_equal(got, arrays[indices])
    assert np.allclose(shards.read_mv(indices), arrays[indices] / 1000)


def test_batches_come_in_order_with_their_rows(root):
    shards = Shards(root, "train")
    order = Order(shards.counts, 0, 8, 4, 2)
    got = list(Stream(shards, order, 2, 7, 1, 2, torch.device("cpu")))
    assert [b.step for b in got] == [2, 3, 4, 5, 6]
    for batch in got:
        indices = order.step(batch.step, 1, 2)
        assert np.array_equal(batch.rows.numpy(), indices + shards.rows.start)
        expected = shards.read_mv(indices.ravel()).reshape(batch.signals.shape)
        assert torch.allclose(millivolts(batch.signals, shards.resolution_mv), torch.from_numpy(expected))


def test_rows_of_the_second_split_follow_the_first(root):
    val = Shards(root, "val")
    assert list(val.rows) == [24, 25, 26, 27]
    assert val.table().column("shard").to_pylist() == [1] * 4


def test_an_error_while_reading_reaches_the_trainer(root):
    shards = Shards(root, "train")

    class Broken:
        def steps(self, *a):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(Stream(shards, Broken(), 0, 3, 0, 1, torch.device("cpu")))


def test_a_loop_that_ends_early_leaves_no_thread(root):
    import threading

    shards = Shards(root, "train")
    stream = Stream(shards, Order(shards.counts, 0, 4, 4), 0, 500, 0, 1, torch.device("cpu"))
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_damaged_data_sets_are_refused(tmp_path):
    root = make_shards(tmp_path / "s", {"train": ["SR"] * 4})
    with pytest.raises(UserError, match="no sample in split 'test'"):
        Shards(root, "test")
    with pytest.raises(UserError, match="split 'all' is unknown"):
        Shards(root, "all")
    tar = root / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match="was truncated or overwritten"):
        Shards(root, "train")
    tar.unlink()
    with pytest.raises(UserError, match="missing"):
        Shards(root, "train")
    (root / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Shards(root, "train")
