"""What is left out of a run, from which step on, over several starts of it."""

import json

import numpy as np
import pytest

from tests.support.many_shards import many_shards
from trainer.data.exclude import as_saved, changes
from trainer.data.order import Order
from trainer.data.shards import Shards
from umbra.errors import UserError
from umbra.schema import Shard

SHARDS = [Shard(f"train-{i:06d}.tar", "train", n, 0, "") for i, n in enumerate((11, 0, 7, 13, 9, 12))]
A, B = "train-000003.tar", "train-000000.tar"


def order_of(changes) -> Order:
    return Order(tuple(s.samples for s in SHARDS), 3, 8, 4, 2, block=2, changes=changes)


def test_each_start_of_a_run_adds_what_it_changes():
    saved: dict = {}
    lines = []
    for step, names in ((0, []), (8, []), (8, [A]), (8, [A, B]), (10, [B, A, B]), (13, [A]), (13, []), (17, [])):
        saved["step"] = step  # a checkpoint of this step, from which the run goes on with these names
        found = changes(names, SHARDS, saved)
        saved = json.loads(json.dumps({"step": step, "excluded": as_saved(found, SHARDS)}))
        lines.append(found)
    assert lines[:3] == [(), (), ((8, (3,)),)]
    assert lines[3] == lines[4] == ((8, (0, 3)),)
    assert lines[5] == ((8, (0, 3)), (13, (3,)))
    assert lines[6] == lines[7] == ((8, (0, 3)), (13, ()))
    assert changes([A], SHARDS, {}) == ((0, (3,)),)
    walked = [order_of(lines[-1]).step(s) for s in range(30)]
    for done, line in ((8, lines[1]), (13, lines[4])):  # what was done stays what it was
        assert all(np.array_equal(order_of(line).step(s), walked[s]) for s in range(done))


def test_names_of_another_data_set_are_refused_but_not_in_a_checkpoint_whose_fingerprint_will_be():
    with pytest.raises(UserError, match=r"data.exclude: val-000001.tar is not a shard of the training split"):
        changes(["val-000001.tar"], SHARDS, {})
    with pytest.raises(UserError, match=r"did you mean 'train-000003.tar'\?"):
        changes(["train-000003"], SHARDS, {})
    assert changes([], SHARDS, {"step": 9, "excluded": [[3, ["other.tar", A]]]}) == ((3, (3,)), (9, ()))


def test_a_damaged_shard_that_is_excluded_stops_no_start(tmp_path):
    root, _ = many_shards(tmp_path / "s", (8, 8, 8), samples=32)
    (root / "train-000001.tar").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"train-000001.tar has 3 bytes"):
        Shards(root, "train")
    assert Shards(root, "train", excluded=["train-000001.tar"]).count == 24
