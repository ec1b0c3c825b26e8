"""The order of a mixture, against a walk of it sample by sample."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from trainer.data.mixture import Mixture, Source
from trainer.data.remote.needs import needs_of, smallest_of_source
from umbra.errors import UserError


@st.composite
def mixtures(draw):
    lanes, micro = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    batch = lanes * micro * draw(st.integers(1, 3))
    sources = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        counts = tuple(draw(st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(sum)))
        out = draw(st.lists(st.integers(0, len(counts) - 1), max_size=2, unique=True))
        out = [shard for shard in out if sum(counts) - sum(counts[s] for s in out)]
        source = Source(
            name, counts, draw(st.integers(1, 9)), draw(st.integers(1, 5)), tuple(out), draw(st.integers(0, 3))
        )
        sources.append(replace(source, start=draw(st.integers(0, source.samples - 1))))
    words = draw(st.integers(0, 2**40)), batch, lanes, micro, draw(st.integers(1, 4)), draw(st.integers(0, 50))
    try:
        return Mixture(tuple(sources), *words)
    except UserError:  # a source of which a step would take a sample twice, or fewer samples than a batch
        reject()


def sources_of(mixture: Mixture, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the source, sample in it) of samples."""
    begins = np.cumsum([0, *(sum(source.counts) for source in mixture.sources)])
    of = np.searchsorted(begins, samples, "right") - 1
    return of, samples - begins[of]


@given(mixtures())
@settings(max_examples=60, deadline=None)
def test_each_source_has_each_sample_once_in_each_of_its_own_epochs(mixture):
    longest = max(s.samples * mixture.schedule.period // s.share for s in mixture.sources)
    steps = min(3 * longest // mixture.batch + 2, 400)
    taken, seen = defaultdict(int), defaultdict(list)
    for step in range(mixture.first, mixture.first + steps):
        of, samples = sources_of(mixture, mixture.step(step).ravel())
        for source, sample in zip(of.tolist(), samples.tolist()):
            seen[source].append(sample)
            taken[source] += 1
        for n, source in enumerate(mixture.sources):
            wanted = (step + 1 - mixture.first) * mixture.batch * source.share / mixture.schedule.period
            assert abs(taken[n] - wanted) < 1
        assert [taken[n] for n in range(len(mixture.sources))] == mixture.taken(step + 1)
    for n, source in enumerate(mixture.sources):
        shard = np.repeat(np.arange(len(source.counts)), source.counts)
        due = np.flatnonzero(~np.isin(shard, source.excluded)).tolist()
        rest, size, epochs = seen[n][source.samples - source.start :], source.samples, []
        first = seen[n][: source.samples - source.start]
        assert len(set(first)) == len(first)
        assert set(first) <= set(due)
        while len(rest) >= size:
            assert sorted(rest[:size]) == due
            epochs.append(tuple(rest[:size]))
            rest = rest[size:]
        assert len(set(rest)) == len(rest)
        if size > 8 and len(epochs) > 1:
            assert len(set(epochs)) > 1


@given(mixtures(), st.integers(0, 200), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_any_world_size_and_any_start_give_the_same_contrast_batches(mixture, step, count):
    step += mixture.first
    alone = mixture.steps(step, count)
    assert alone.shape == (count, mixture.micro, mixture.batch // mixture.micro)
    fresh = replace(mixture, _streams=[])
    assert all(np.array_equal(fresh.step(step + n), alone[n]) for n in reversed(range(count)))
    for world in (1, 2, 4):
        if mixture.lanes % world:
            with pytest.raises(UserError, match="cannot be shared by"):
                mixture.ranks(world)
            continue
        mixture.ranks(world)
        parts = [mixture.steps(step, count, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts, axis=2), alone)
        ends = np.cumsum([n for source in mixture.sources for n in source.counts])
        for rank, part in enumerate(parts):
            shards = mixture.shards(step, count, rank, world).tolist()
            assert len(set(shards)) == len(shards)
            assert set(np.searchsorted(ends, part.ravel(), "right").tolist()) <= set(shards)
            assert all(mixture.in_use[shard] for shard in shards)


@given(mixtures(), st.integers(0, 60), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_plan_of_a_remote_source_names_the_shards_of_each_step(mixture, start, count):
    start += mixture.first
    for number, source in enumerate(mixture.sources):
        plan = list(needs_of(mixture, source.name, start, start + count))
        assert [need.first for need in plan] == sorted(need.first for need in plan)
        ends, sizes = np.cumsum(source.counts), [100 + n for n in range(len(source.counts))]
        for step in range(start, start + count):
            of, samples = sources_of(mixture, mixture.step(step).ravel())
            needed = set(np.searchsorted(ends, samples[of == number], "right").tolist())
            assert needed <= {need.shard for need in plan if need.first <= step <= need.last}
        assert not {need.shard for need in plan} & set(source.excluded)
        steps = [{need.shard for need in plan if need.first <= s <= need.last} for s in range(start, start + count)]
        fullest = max(sum(sizes[shard] for shard in at_once) for at_once in steps)
        assert fullest == smallest_of_source(mixture, source.name, start, start + count, sizes)


def test_the_order_of_a_source_does_not_depend_on_the_others():
    a, b = Source("a", (9, 9, 9), 1, 2), Source("b", (8, 8, 8), 1, 2)
    both, alone = Mixture((a, b), 0, 4, 2), Mixture((a,), 0, 4, 2)
    of_a = [x for step in range(12) for x in both.step(step).ravel().tolist() if x < 27]
    assert of_a == [x for step in range(6) for x in alone.step(step).ravel().tolist()]
    of_b = [x - 27 for step in range(12) for x in both.step(step).ravel().tolist() if x >= 27]
    assert of_a[:24] != of_b[:24]


def test_what_cannot_work_is_refused_with_the_way_out():
    few, few_more, many = Source("few", (3,), 1, 1), Source("more", (3,), 1, 1), Source("many", (90,), 1, 1)
    with pytest.raises(
        UserError, match=r"up to 4 ECGs of a step are of few, which has 3 training ECGs: lower its weight"
    ):
        Mixture((few, many), 0, 8, 4)
    assert sorted(Mixture((few, few_more), 0, 6, 2).step(9).ravel().tolist()) == list(range(6))  # a step takes all
    with pytest.raises(UserError, match=r"batch.global=128 is larger than the 93 training samples"):
        Mixture((few, many), 0, 128, 4)
    with pytest.raises(UserError, match=r"data.lanes=3 does not divide the contrast batch 4"):
        Mixture((few, many), 0, 4, 3)
