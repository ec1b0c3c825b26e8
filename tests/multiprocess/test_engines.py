"""The game under real engines against a single-process reference; one launcher start for a whole matrix."""

import itertools
import json

import pytest

from tests.support.devices import on_each
from tests.support.launch import launch

PLAIN = {"plain": True, "adamw": True, "steps": 20}
QUICK = [
    PLAIN, {**PLAIN, "accumulation": 2, "learn": True, "device": 1, "dials": {"masks": 2, "use": "all"}},
    {}, {"accumulation": 2}, {"zero": 1, "accumulation": 4}, {"zero": 2}, {"zero": 2, "adamw": True, "learn": True},
    {"zero": 1, "accumulation": 2, "dials": {"schedule": "alternating"}},
    {"zero": 3, "adamw": True, "learn": True, "device": 1, "accumulation": 2},
    {"dials": {"masks": 2, "threshold": "half", "penalty": "paper"}}, {"dials": {"family": "spectral", "share": 0.6}},
    {**PLAIN, "norm": "batch", "accumulation": 2, "dials": {"masks": 2, "use": "all"}}, {"norm": "batch"},
    {"norm": "batch", "zero": 3, "accumulation": 2, "dials": {"schedule": "alternating"}},
]  # fmt: skip
DIALS = [
    {},
    {"masks": 3},
    {"masks": 2, "use": "all"},
    {"schedule": "alternating"},
    {"masks": 2, "threshold": "half", "penalty": "paper", "schedule": "alternating"},
    {"family": "lead", "share": 0.6, "entropy": 0.3, "smoothness": 0.2},
    {"family": "spectral", "masks": 2},
]
STAGES = [{"zero": z, "accumulation": a} for z, a in itertools.product((0, 1, 2, 3), (1, 4))]
FULL = [{**stage, "dials": dials} for stage, dials in itertools.product(STAGES, DIALS)]
FULL += [{**stage, "adamw": True, "learn": True} for stage in STAGES]
FULL += [{**stage, "adamw": True, "device": 1} for stage in STAGES]
FULL += [{"zero": z, "learn": True, "device": 3, "dials": DIALS[d]} for z, d in itertools.product((0, 1, 2, 3), (2, 3))]
FULL += [{**PLAIN, "dials": dials} for dials in DIALS]
FULL += [{**PLAIN, "norm": "batch", "dials": dials} for dials in DIALS]
FULL += [{**stage, "norm": "batch", "adamw": True, "dials": DIALS[d]} for stage, d in itertools.product(STAGES, (0, 3))]
BF16 = [{**stage, "bf16": True} for stage in STAGES] + [{"zero": z, "bf16": True, "device": 1} for z in (0, 1, 2, 3)]
BF16 += [{"zero": z, "bf16": True, "norm": "batch"} for z in (0, 1, 2, 3)]


def play(cases: list[dict], processes: int, seconds: float = 280, device: str = "cpu") -> list[dict]:
    words = ["tests/multiprocess/engines_worker.py", json.dumps(cases)]
    code, output = launch(words, processes, seconds, device)
    assert code == 0, output[-4000:]
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    assert len(rows) == 4 + len(cases), output[-4000:]
    return rows


def check(rows: list[dict], limit: float) -> None:
    """The loss over ranks; both players' gradients before the optimiser; weights, running statistics after updates."""
    loss, *before, played = *rows[:4], rows[4:]
    assert loss["error"] < 1e-12
    for gradients in before:
        for player in ("encoder", "masker"):
            assert gradients[player]["median"] < 1e-5, gradients
            assert gradients[player]["worst"] < 1e-3, gradients
    limits = [1e-10 if row["case"].get("plain") else limit for row in played]
    wrong = [row for row, most in zip(played, limits) if not max(v for k, v in row.items() if k != "case") < most]
    assert not wrong, wrong
    assert all(("running" in row) == (row["case"].get("norm") == "batch") for row in played)


@pytest.mark.parametrize("device", on_each())
def test_the_ranks_update_both_players_as_one_process_would(device):
    check(play(QUICK, 2 if device == "cpu" else 1, device=device), 1e-4)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_matrix_of_stages_accumulation_and_dials(processes):
    check(play(FULL, processes, 850), 1e-4)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_bf16_autocast_stays_within_its_noise(processes):
    check(play(BF16, processes, 850), 0.1)
