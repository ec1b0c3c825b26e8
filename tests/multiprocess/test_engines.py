"""The game under real engines against a single-process reference; one launcher start for a whole matrix."""

import itertools
import json

import pytest

from tests.launch import launch

NONE: dict = {}
QUICK = [
    [0, 1, False, NONE], [0, 2, False, NONE], [1, 1, False, NONE], [1, 2, False, NONE], [2, 1, False, NONE],
    [2, 2, False, NONE], [1, 2, False, {"schedule": "alternating"}],
    [0, 1, False, {"masks": 2, "threshold": "half", "penalty": "paper"}],
]  # fmt: skip
DIALS = [
    NONE,
    {"masks": 3},
    {"masks": 2, "use": "all"},
    {"schedule": "alternating"},
    {"masks": 2, "threshold": "half", "penalty": "paper", "schedule": "alternating"},
]
FULL = [[z, a, b, d] for z, a, b, d in itertools.product((0, 1, 2, 3), (1, 2), (False,), DIALS)]
BF16 = [[z, a, True, NONE] for z, a in itertools.product((0, 1, 2, 3), (1, 2))]


def play(cases: list, processes: int) -> list[dict]:
    words = ["tests/multiprocess/engines_worker.py", json.dumps(cases)]
    code, output = launch(words, processes, seconds=280)
    assert code == 0, output[-4000:]
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    assert len(rows) == 1 + len(cases), output[-4000:]
    return rows


def check(rows: list[dict], limit: float) -> None:
    assert rows[0]["error"] < 1e-12
    wrong = [row for row in rows[1:] if not max(row["encoder"], row["masker"]) < limit]
    assert not wrong, wrong


def test_two_ranks_update_both_players_as_one_process_would():
    check(play(QUICK, 2), 1e-4)


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_matrix_of_stages_accumulation_and_dials(processes):
    check(play(FULL, processes), 1e-4)


@pytest.mark.full
def test_bf16_autocast_stays_within_its_noise():
    check(play(BF16, 2), 0.05)
