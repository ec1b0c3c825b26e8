"""The pace that `status` prints counts the time in which shards were written, whatever lay between."""

import random

import pytest

from sharding.progress import busy_seconds


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(5, 7)], 2),
        ([(0, 10), (2, 3)], 10),  # one worker beside another
        ([(0, 10), (5, 12)], 12),
        ([(86400, 86410), (0, 10)], 20),  # stopped for a day
    ],
)
def test_overlapping_times_count_once_and_pauses_not_at_all(spans, seconds):
    assert busy_seconds(spans) == seconds


def test_it_is_the_length_of_the_union():
    dice = random.Random(0)
    for _ in range(50):
        spans = [(start, start + dice.randrange(20)) for start in (dice.randrange(200) for _ in range(12))]
        assert busy_seconds(spans) == len({second for start, end in spans for second in range(start, end)})
