import numpy as np
import pytest
import torch

from tests.support.handmade import make_shards
from trainer.data.shards import Shards
from trainer.evaluate import records
from trainer.evaluate.records import Records, Turns, free_bytes
from trainer.evaluate.task import Labelled

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    kinds = ["SR", "AFIB", "STACH"] * 8
    root = make_shards(tmp_path_factory.mktemp("data") / "d", {"val": kinds[:3], "train": kinds}, shards_of_train=4)
    shards, index = Shards(root, "train"), np.array([20, 3, 5, 11, 0, 17, 8])
    return Labelled(shards, index, np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(7))


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (7, 7), (5, 1)])
def test_an_epoch_deals_each_record_at_most_once_and_another_one_differently(count, batch):
    turns = Turns(count, batch, 3)
    first = turns.of(1)
    assert first.shape == (turns.steps, batch) == (count // batch, batch)
    assert len(np.unique(first)) == first.size
    assert set(first.ravel()) <= set(range(count))
    np.testing.assert_array_equal(first, Turns(count, batch, 3).of(1))
    orders = {tuple(Turns(count, batch, seed).of(epoch).ravel()) for seed in (3, 4) for epoch in (1, 2)}
    assert len(orders) == 4


@pytest.mark.parametrize("room", [0, 1e9], ids=["read", "held"])
def test_batches_are_the_records_that_their_turns_say(labelled, room):
    held, turns = Records(labelled, CPU, room), Turns(7, 2, 0)
    assert (held.held is not None) == (room > 0)
    for epoch, batches in enumerate(held.shuffled(turns, 3)):
        for at, batch in zip(turns.of(epoch), batches, strict=True):
            torch.testing.assert_close(
                batch.signals, torch.from_numpy(labelled.shards.read_mv(labelled.index[at])), rtol=0, atol=0
            )
            np.testing.assert_array_equal(batch.target, labelled.target[at])
            np.testing.assert_array_equal(batch.row, labelled.index[at] + 3)
    ordered = torch.cat([*held.in_order(3)])
    np.testing.assert_array_equal(ordered, labelled.shards.read_mv(labelled.index))


def test_what_is_left_early_reads_no_further(labelled, monkeypatch):
    closed = []
    monkeypatch.setattr(records.Stream, "close", lambda self, close=records.Stream.close: closed.append(close(self)))
    dealt = Records(labelled, CPU, 0).shuffled(Turns(7, 2, 0), 100)
    next(next(dealt))
    assert not closed
    dealt.close()
    assert closed


def test_records_are_held_up_to_the_room_that_they_take(labelled):
    size = 7 * 12 * 256 * 2
    assert Records(labelled, CPU, size).held is not None
    assert Records(labelled, CPU, size - 1).held is None


def test_free_memory_is_what_machine_and_container_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(records, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 0
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\nBuffers: 1 kB\n")
    assert free_bytes(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert free_bytes(CPU) == 2000
