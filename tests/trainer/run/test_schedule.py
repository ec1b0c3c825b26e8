"""Learning rates against what their docstrings say, step by step."""

import math

import pytest

from trainer import config
from trainer.config import OptimConfig, PretrainConfig
from trainer.game import masking
from trainer.run.schedule import learning_rate, player_rate
from umbra.errors import UserError

WSD = OptimConfig(schedule="wsd", warmup=0.1, decay=0.25)


def rates(optim: OptimConfig, total: int) -> list[float]:
    return [learning_rate(optim, 2.0, step, total) for step in range(total)]


def test_the_maskers_rate_rises_and_falls_over_the_steps_that_it_plays():
    plain = config.PretrainConfig()
    late = config.PretrainConfig(game=masking.GameConfig(warmup=0.25))
    for step in range(300):
        assert player_rate(late, "masker", 100 + step, 400) == player_rate(plain, "masker", step, 300)
        assert player_rate(late, "encoder", step, 400) == player_rate(plain, "encoder", step, 400)
    first = next(step for step in range(400) if late.game.at(step / 400).share > 0)
    assert player_rate(late, "masker", first + 14, 400) == late.optim.masker.lr


def test_cosine_is_half_in_the_middle_and_nearly_zero_at_the_end():
    found = rates(OptimConfig(warmup=0.0), 101)
    assert found[0] == 2.0
    assert found[51] == pytest.approx(1.0, abs=0.02)
    assert found[-1] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 99 / 100)))
    assert found == sorted(found, reverse=True)


def test_wsd_warms_up_stays_and_decays_in_a_line():
    found = rates(WSD, 100)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(found[10:76]) == {2.0}
    assert found[75:] == pytest.approx([2.0 * (100 - step) / 25 for step in range(75, 100)])


def test_a_prolonged_wsd_run_goes_on_at_the_same_rate_before_its_decay():
    short, long = rates(WSD, 100), rates(WSD, 200)
    assert short[20:75] == long[20:75]
    cosine = OptimConfig(warmup=0.1)
    assert rates(cosine, 100)[60] < 0.7 * rates(cosine, 200)[60]


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_short_runs_have_a_rate_at_every_step(total, schedule):
    assert all(0 < rate <= 2.0 for rate in rates(OptimConfig(schedule=schedule, warmup=0.5, decay=0.5), total))


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (OptimConfig(decay=0.5), "optim.decay has no effect with optim.schedule=cosine"),
        (OptimConfig(schedule="wsd", warmup=0.5, decay=0.6), "together at most 1"),
        (OptimConfig(schedule="linear"), "optim.schedule=linear is unknown; use cosine, wsd"),
    ],
)
def test_what_cannot_be_is_refused(optim, said):
    with pytest.raises(UserError, match=said):
        PretrainConfig(optim=optim, data=config.DataConfig(path="x")).check()
