import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.config import UserError
from trainer.data.order import Order, default_lanes


@st.composite
def orders(draw):
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    micro = draw(st.sampled_from([1, 2, 3]))
    batch = lanes * micro * draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda c: sum(c) >= batch))
    return Order(tuple(counts), draw(st.integers(0, 5)), batch, lanes, micro, draw(st.integers(1, 5)))


def epoch(order: Order, number: int) -> np.ndarray:
    first = number * order.steps_per_epoch
    return np.stack([order.step(first + s) for s in range(order.steps_per_epoch)])


@given(orders())
@settings(max_examples=60, deadline=None)
def test_each_epoch_sees_floor_n_over_g_batches_of_distinct_samples(order):
    total = sum(order.counts)
    for number in (0, 1, 2):
        seen = epoch(order, number).ravel()
        assert len(seen) == total // order.batch * order.batch == len(set(seen.tolist()))
        assert seen.min() >= 0
        assert seen.max() < total


@given(orders(), st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_the_contrast_batches_are_the_same_at_any_world_size(order, world):
    if order.lanes % world:
        with pytest.raises(UserError, match="cannot share"):
            order.ranks(world)
        return
    for step in (0, order.steps_per_epoch * 2 + 1):
        alone = order.step(step)
        parts = [order.step(step, rank, world) for rank in range(world)]
        for micro in range(order.micro):
            assert sorted(alone[micro]) == sorted(np.concatenate([p[micro] for p in parts]))


def test_a_step_does_not_depend_on_what_was_asked_before():
    order = Order((40, 0, 25, 60), 3, 16, 4)
    walked = [order.step(s) for s in range(3 * order.steps_per_epoch)]
    for s in (17, 8, 0, 20):
        assert np.array_equal(Order((40, 0, 25, 60), 3, 16, 4).step(s), walked[s])


def test_epochs_and_seeds_differ_and_so_does_the_remainder():
    order = Order((50, 50, 50, 7), 0, 16, 4, block=2)
    first, second = epoch(order, 0), epoch(order, 1)
    assert not np.array_equal(first, second)
    assert set(first.ravel().tolist()) != set(second.ravel().tolist())
    assert not np.array_equal(first, epoch(Order((50, 50, 50, 7), 1, 16, 4, block=2), 0))


def test_a_lane_meets_other_shards_in_another_epoch():
    order = Order((16,) * 8, 0, 16, 8, block=1)
    shards = [set((epoch(order, e)[:, 0, :2] // 16).ravel().tolist()) for e in range(4)]
    assert any(s != shards[0] for s in shards)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(counts=(10,), seed=0, batch=16, lanes=4), "larger than the 10"),
        (dict(counts=(99,), seed=0, batch=16, lanes=5), "nearest: 4"),
        (dict(counts=(99,), seed=0, batch=16, lanes=4, micro=3), "does not divide"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(arguments, words):
    with pytest.raises(UserError, match=words):
        Order(**arguments)


def test_default_lanes():
    assert [default_lanes(n) for n in (256, 96, 30, 7, 130)] == [64, 48, 30, 7, 26]
