"""Where masks fall, against a ratio written out and masks that were planted."""

import numpy as np
import pytest

from trainer.evaluate.delineation import Delineation
from trainer.evaluate.lift import counted, ecgs_of, joined, lifts, rows

RNG = np.random.default_rng(0)
N, T = 300, 500


def ecgs(n=N, first=0, groups=None):
    """ECGs whose P, QRS, T, rest, noise and quiet stretches are random places."""
    place = RNG.choice(6, (n, T), p=(0.2, 0.1, 0.3, 0.2, 0.1, 0.1))
    waves = [Delineation(np.stack([at == w for w in range(6)]), (2, 3, 3, 3, 1, 1), 3) for at in place]
    return waves, ecgs_of(waves, first + np.arange(n) // 2, groups or {})


def planted(waves, inside=0.6, outside=0.3):
    """Masks that hide QRS more often than the rest."""
    qrs = np.stack([d.waves[1] for d in waves])
    return (RNG.random(qrs.shape) < np.where(qrs, inside, outside)).astype(np.float32)


def test_lift_is_one_by_chance_and_what_was_planted_otherwise():
    waves, of = ecgs()
    for inside, outside in ((0.4, 0.4), (0.6, 0.3)):
        hidden = counted(planted(waves, inside, outside), waves)
        values, ends = lifts(hidden[None], of.samples, of.patient, 300)
        whole = 0.1 * inside + 0.9 * outside
        assert values == pytest.approx(
            np.array([outside, inside, outside, outside, outside, outside]) / whole, abs=0.03
        )
        assert all(low < value < high for value, (low, high) in zip(values, ends))


def test_runs_are_averaged_and_parts_are_pooled():
    """By hand: the sums of all ECGs of all parts, the mean of the runs; a group counts where a part has it."""
    parts = [
        ecgs(40, 0, {"AFIB": np.arange(40) < 9}),
        ecgs(60, 500, {"AFIB": np.arange(60) < 3, "SR": np.arange(60) > 9}),
    ]
    whole = joined([of for _, of in parts])
    masks = [[planted(waves, inside) for waves, _ in parts] for inside in (0.3, 0.9)]
    hidden = np.stack([np.concatenate([counted(m, waves) for m, (waves, _) in zip(run, parts)]) for run in masks])
    found = {(r.group, r.wave): r for r in rows(whole, {"masker": hidden}, 50)}
    assert {group for group, _ in found} == {"all", "AFIB", "SR"}, "9 and 3 are enough together"
    assert (found["AFIB", "T"].ecgs, found["AFIB", "T"].found, found["SR", "T"].ecgs) == (12, 36, 50)
    by_hand = []
    for run in masks:
        of_afib = [
            (m[of.groups["AFIB"]], np.array(waves, object)[of.groups["AFIB"]]) for m, (waves, of) in zip(run, parts)
        ]
        chosen = [pair for m, waves in of_afib for pair in zip(m, waves)]
        qrs = np.concatenate([mask[d.waves[1]] for mask, d in chosen])
        by_hand.append(qrs.mean() / np.mean([mask for mask, _ in chosen]))
    row = found["AFIB", "QRS"]
    assert row.lift == pytest.approx(np.mean(by_hand))
    assert row.low < row.lift < row.high


def test_a_wave_that_too_few_ecgs_have_has_no_lift():
    waves, of = ecgs(30)
    of.count[9:, 0] = 0
    found = {r.wave: r for r in rows(of, {"masker": counted(planted(waves), waves)[None]}, 20)}
    assert np.isnan(found["P"].lift)
    assert found["P"].ecgs_with == 9
    assert found["T"].lift > 0
