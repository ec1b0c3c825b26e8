import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.orders import changes, left_out
from trainer.data.order import Order, Span, default_lanes
from umbra.errors import UserError


@st.composite
def orders(draw):
    lanes = draw(st.sampled_from([1, 2, 4, 8, 16]))
    micro = draw(st.sampled_from([1, 2, 3]))
    batch = lanes * micro * draw(st.integers(1, 3))
    sizes = st.one_of(st.just(0), st.integers(0, 30), st.just(20))
    counts = draw(st.lists(sizes, min_size=1, max_size=14).filter(lambda c: sum(c) >= batch))
    words = draw(st.integers(0, 2**60)), batch, lanes, micro, draw(st.integers(1, 16))
    return Order(tuple(counts), *words, draw(changes(counts, batch)))


def epochs(order: Order, count: int) -> list[Span]:
    """The first epochs of a run."""
    found = [order.epoch(0)]
    while len(found) < count:
        found.append(order.epoch(found[-1].stop))
    return found


def samples(order: Order, span: Span) -> np.ndarray:
    return np.stack([order.step(step) for step in range(span.first, span.stop)])


def epoch(order: Order, number: int) -> np.ndarray:
    return samples(order, epochs(order, number + 1)[-1])


@given(orders())
@settings(max_examples=150, deadline=None)
def test_each_epoch_sees_floor_n_over_g_batches_of_distinct_samples(order):
    shard_of = np.repeat(np.arange(len(order.counts)), order.counts)
    for number, span in enumerate(epochs(order, 3 + len(order.changes))):
        assert span.number == number
        total = sum(n for shard, n in enumerate(order.counts) if shard not in span.excluded)
        seen = samples(order, span).ravel()
        assert len(seen) == len(set(seen.tolist())) == (span.stop - span.first) * order.batch
        assert span.length == total // order.batch
        assert not set(shard_of[seen].tolist()) & set(span.excluded)
        if span.stop not in [step for step, _ in order.changes]:
            assert span.stop - span.first == span.length


@given(orders())
@settings(max_examples=150, deadline=None)
def test_each_step_is_of_one_epoch_and_a_change_begins_one(order):
    now: tuple[int, ...] = ()
    for step in range(60):
        span, changed = order.epoch(step), dict(order.changes)
        now = changed.get(step, now)
        assert span.excluded == now
        assert span.first <= step < span.stop <= span.first + span.length
        if step:
            before = order.epoch(step - 1)
            begins = step in changed or step == before.first + before.length
            assert (span == before) != begins
            assert span.number == before.number + begins


@given(orders(), st.integers(1, 40), st.data())
@settings(max_examples=100, deadline=None)
def test_a_change_leaves_all_before_it_as_it_was_and_gives_whole_epochs_after(order, step, data):
    order = replace(order, changes=tuple(c for c in order.changes if c[0] < step))
    out = tuple(data.draw(left_out(order.counts, order.batch)))
    changed = replace(order, changes=(*order.changes, (step, out)))
    for s in (0, step // 2, step - 1):
        assert np.array_equal(changed.step(s), order.step(s))
    whole = changed.epoch(step)
    assert whole.first == step
    emptied = tuple(0 if shard in out else n for shard, n in enumerate(order.counts))
    kept = np.flatnonzero(np.repeat([n not in out for n in range(len(emptied))], order.counts))
    seen = samples(changed, whole).ravel()
    assert len(set(seen.tolist())) == len(seen) == sum(emptied) // order.batch * order.batch
    assert set(seen.tolist()) <= set(kept.tolist())


@given(orders(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_contrast_batches_are_the_same_at_any_world_size(order, data):
    step = data.draw(st.integers(0, epochs(order, 3)[-1].stop - 1))
    alone = order.step(step)
    assert alone.shape == (order.micro, order.batch // order.micro)
    for world in (1, 2, 4, 8):
        if order.lanes % world:
            with pytest.raises(UserError, match="cannot be shared by"):
                order.ranks(world)
            continue
        order.ranks(world)
        parts = [order.step(step, rank, world) for rank in range(world)]
        assert {p.shape for p in parts} == {(order.micro, order.batch // order.micro // world)}
        assert np.array_equal(np.concatenate(parts, axis=1), alone)


@given(orders(), st.data())
@settings(max_examples=100, deadline=None)
def test_starting_at_a_step_gives_what_an_uninterrupted_run_gives(order, data):
    _, second, third = epochs(order, 3)
    walked = [order.step(s) for s in range(third.stop)]
    start = data.draw(st.integers(third.first, third.stop - 1))
    fresh = replace(order, _cache={})
    for s in (*range(start, third.stop), 0, second.first):
        assert np.array_equal(fresh.step(s), walked[s])
    count = data.draw(st.integers(1, third.length + 1))
    several = fresh.steps(start, count)
    assert np.array_equal(several, walked[start : min(start + count, third.stop)])


@given(orders(), st.sampled_from([1, 2, 4]), st.data())
@settings(max_examples=100, deadline=None)
def test_the_shards_of_a_step_hold_its_samples_and_are_those_of_its_blocks(order, world, data):
    world = world if order.lanes % world == 0 else 1
    rank = data.draw(st.integers(0, world - 1))
    step, count = data.draw(st.integers(0, 2 * order.steps_per_epoch - 1)), data.draw(st.integers(1, 4))
    shards = order.shards(step, count, rank, world).tolist()
    ends = np.cumsum(order.counts)
    needed = np.searchsorted(ends, order.steps(step, count, rank, world).ravel(), side="right")
    assert len(set(shards)) == len(shards)
    assert set(needed.tolist()) <= set(shards)
    assert all(order.counts[s] for s in shards)
    share = order.lanes // world * count * (order.batch // order.lanes)
    assert len(shards) <= order.block * share


# The first step and a hash over three epochs, as they were when a run was first made with them: a run that is resumed
# under another version of numpy must go on with the same samples.
PINNED = [
    (((40, 0, 25, 60), 3, 16, 4, 2, 2), "05f3a608d9361034"),
    (((7, 0, 0, 9, 30, 1, 12), 11, 12, 4, 1, 3), "b0a689c7100ace06"),
    (((1000,) * 20, 0, 256, 64, 1, 8), "bf0abff58173571b"),
]


@pytest.mark.parametrize(("arguments", "expected"), PINNED)
def test_an_order_stays_what_it_was(arguments, expected):
    order = Order(*arguments)
    steps = (order.step(s, r, 2) for s in range(3 * order.steps_per_epoch) for r in (0, 1))
    assert hashlib.sha256(b"".join(s.astype("<i8").tobytes() for s in steps)).hexdigest()[:16] == expected


def test_epochs_and_seeds_differ_and_so_does_the_remainder():
    order = Order((50, 50, 50, 7), 0, 16, 4, block=2)
    epochs = [epoch(order, number) for number in range(4)]
    assert len({e.tobytes() for e in epochs}) == 4
    assert len({frozenset(e.ravel().tolist()) for e in epochs}) == 4
    assert not np.array_equal(epochs[0], epoch(Order((50, 50, 50, 7), 1, 16, 4, block=2), 0))


def test_every_shard_changes_its_lane_between_epochs():
    order = Order((16,) * 64, 0, 32, 8, block=1)
    lanes = []
    for number in range(6):
        of_lane = epoch(order, number).reshape(order.steps_per_epoch, 8, 4).transpose(1, 0, 2)
        lanes.append([set((samples // 16).ravel().tolist()) for samples in of_lane])
    for shard in range(64):
        met = [frozenset(lane for lane, shards in enumerate(one) if shard in shards) for one in lanes]
        assert len(set(met)) > 1


def test_a_block_is_mixed_and_blocks_are_not():
    order = Order((100,) * 40, 0, 8, 8, block=4)
    line = epoch(order, 0).reshape(-1, 8).T.ravel()
    for block in line.reshape(10, 400):
        assert len(set((block // 100).tolist())) == 4
        assert abs(np.corrcoef(np.arange(400), np.argsort(np.argsort(block)))[0, 1]) < 0.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(counts=(10,), seed=0, batch=16, lanes=4), "larger than the 10"),
        (dict(counts=(10, 9), seed=0, batch=16, lanes=4, changes=((3, (1,)),)), "the 10 .* that data.exclude leaves"),
        (
            dict(counts=(10, 9), seed=0, batch=4, lanes=4, changes=((3, (0, 1)),)),
            "data.exclude leaves no training shard",
        ),
        (dict(counts=(99,), seed=0, batch=16, lanes=5), "nearest: 4"),
        (dict(counts=(99,), seed=0, batch=16, lanes=4, micro=3), "does not divide"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(arguments, words):
    with pytest.raises(UserError, match=words):
        Order(**arguments)


def test_default_lanes():
    assert [default_lanes(n) for n in (256, 96, 30, 7, 130)] == [64, 48, 30, 7, 26]


@pytest.mark.parametrize(
    ("batch", "more", "world", "said"),
    [
        (63, {}, 2, "batch.global=63 cannot be shared by 2 processes; use batch.global=62 or 64, or 1 process"),
        (192, {}, 3, "use batch.global=189 or 195, or data.lanes=192, or 2 processes"),
        (126, {"micro": 2}, 2, "batch.contrast=63 cannot be shared by 2 processes; use batch.contrast=62 or 64, or 1 "),
        (64, {"lanes": 16}, 3, "data.lanes=16 cannot be shared by 3 processes; use 2 processes"),
        (128, {}, 128, "batch.global=128 cannot be shared by 128 processes; use data.lanes=128, or 64 processes"),
        (200, {"samples": 200}, 7, "use batch.global=196, or 5 processes"),
    ],
)
def test_what_the_processes_cannot_share_names_what_they_can(batch, more, world, said):
    """And each batch that is named works."""
    counts, micro = (more.get("samples", 1000),), more.get("micro", 1)
    lanes = more.get("lanes", default_lanes(batch // micro))
    with pytest.raises(UserError) as error:
        Order(counts, 0, batch, lanes, micro).ranks(world)
    assert said in str(error.value)
    named = re.search(r"use batch\.\w+=(\d+)(?: or (\d+))?,", str(error.value))
    for contrast in map(int, filter(None, named.groups() if named else ())):
        Order(counts, 0, contrast * micro, default_lanes(contrast), micro).ranks(world)
