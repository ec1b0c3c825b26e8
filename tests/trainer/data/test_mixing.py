"""The schedule of a mixture against what it promises, counted one position at a time."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.data.mixing import Schedule, whole_shares

SHARES = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 60)), min_size=1, max_size=7)


@given(SHARES)
@example([97, 1, 1, 1])  # many small ones beside a large one
@example([1] * 7)
@example([50, 49, 1])
@settings(max_examples=60, deadline=None)
def test_each_source_is_within_one_sample_of_its_weight_at_any_prefix(shares):
    schedule = Schedule(tuple(shares))
    total = sum(shares)
    sources, places = schedule.at(np.arange(2 * total + 5))
    counts = [0] * len(shares)
    for t, (source, place) in enumerate(zip(sources.tolist(), places.tolist())):
        assert counts == schedule.counts(t)
        assert place == counts[source]
        assert schedule.positions(source, np.array([place])).tolist() == [t]
        counts[source] += 1
        assert all(abs(n - Fraction((t + 1) * share, total)) < 1 for n, share in zip(counts, shares))


@given(SHARES, st.integers(0, 10**15))
@settings(max_examples=60, deadline=None)
def test_any_position_is_reached_without_those_before_it(shares, far):
    schedule, total = Schedule(tuple(shares)), sum(shares)
    here, place = schedule.at(np.array([[far], [far % total]]))
    assert here[0] == here[1]
    assert place[0] - place[1] == far // total * shares[int(here[0, 0])]
    assert schedule.positions(int(here[0, 0]), place[0]).tolist() == [far]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1, 3], (1, 3)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([200, 100], (2, 1)),
        ([5], (1,)),
        ([1e-9, 1], (1, 65535)),
        ([10**7, 1, 1], (65534, 1, 1)),
    ],
)
def test_weights_become_the_smallest_whole_shares(weights, shares):
    assert whole_shares(weights) == shares


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_rounded_shares_are_within_one_of_the_period_of_their_weights(weights):
    shares = whole_shares(weights, 1000)
    scale = Fraction(sum(weights), sum(shares))
    assert sum(shares) <= 1000
    assert min(shares) >= 1
    exact = [w / scale for w in weights]
    if min(exact) >= 1:
        assert all(abs(share - wanted) < 1 for share, wanted in zip(shares, exact))
