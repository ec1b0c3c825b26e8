import numpy as np
import pytest
import torch
from scipy import stats

from trainer.views import Key
from trainer.views.pairing import PairConfig, Pairing, pairing
from trainer.views.random import bits
from umbra.config import load
from umbra.errors import UserError


def keys(batch, start=0, epoch=0):
    key = Key(7, epoch, torch.arange(start, start + batch))
    return key.with_view(0), key.with_view(1)


def windows(batch, samples, start=0):
    """int16 [B, 2, samples]: the number of a sample in its window, in lead 2 with 1,000 times that of the window."""
    place = torch.arange(samples, dtype=torch.int16).expand(batch, -1)
    return torch.stack([place, place + 1000 * torch.arange(start, start + batch, dtype=torch.int16)[:, None]], 1)


def test_the_whole_window_is_both_views_and_of_a_patient_each_has_its_own():
    x, other = windows(3, 10), windows(3, 10, 5)
    for cut, wanted in ((x, (x, x)), (other, (x, other))):
        assert [a is b for a, b in zip(Pairing("patient", 10).cut(x, cut, keys(3)), wanted)] == [True, True]


@pytest.mark.parametrize(("samples", "second"), [(10, 5), (11, 6)])
def test_halves_are_the_first_and_the_last_samples(samples, second):
    made, x = pairing(PairConfig("halves"), samples, 100.0), windows(3, samples)
    one, two = made.cut(x, x, keys(3))
    assert made.samples == 5
    assert torch.equal(one, x[..., :5])
    assert torch.equal(two, x[..., second:])


def test_crops_equal_a_reference_and_are_the_same_alone_and_in_any_batch():
    made, x = pairing(PairConfig("crops", 0.6), 100, 100.0), windows(20, 100)
    both = made.cut(x, x, keys(20))
    for key, view in zip(keys(20), both):
        drawn = bits(key, "crop", (1,))[:, 0].numpy() * 41 >> 32
        wanted = [row[:, at : at + 60] for row, at in zip(x.numpy(), drawn)]
        assert np.array_equal(view.numpy(), np.stack(wanted))
    for start in (0, 3, 19):
        part = x[start : start + 5]
        again = made.cut(part, part, keys(len(part), start))
        assert all(torch.equal(a, b[start : start + 5]) for a, b in zip(again, both))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both[0], made.cut(x, x, keys(20, epoch=1))[0])


def test_every_start_that_fits_is_equally_likely_and_the_two_are_independent():
    made, x = pairing(PairConfig("crops", 0.9), 100, 100.0), windows(1, 100).expand(4000, -1, -1)
    one, two = (view[:, 0, 0].numpy() for view in made.cut(x, x, keys(4000)))
    for starts in (one, two):
        assert stats.chisquare(np.bincount(starts, minlength=11)).pvalue > 1e-4
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(4000)


def test_a_crop_as_long_as_the_window_is_the_window():
    made, x = pairing(PairConfig("crops", 1.0), 100, 100.0), windows(4, 100)
    assert all(torch.equal(view, x) for view in made.cut(x, x, keys(4)))


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (PairConfig("crops", 12), r"pair.seconds=12 is longer than the windows of the data, 10 s: give less, or build"),
        (PairConfig("crops", 0.01), "pair.seconds=0.01 leaves views of 1 samples at 100 Hz: too short"),
    ],
)
def test_views_that_do_not_fit_are_one_line(cfg, said):
    with pytest.raises(UserError, match=said):
        pairing(cfg, 1000, 100.0)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (PairConfig("crops"), "pair=crops needs the length of a view: give pair.seconds=S"),
        (PairConfig("halves", 5), "pair.seconds=5 has no effect without pair=crops: leave it out"),
        (PairConfig("halve"), "pair.kind=halve is unknown; use same, halves, crops, patient"),
        (PairConfig("crops", -1), "pair.seconds=-1 must be >= 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(cfg, said):
    with pytest.raises(UserError, match=said):
        cfg.check()


def test_the_kind_can_be_given_for_the_section(tmp_path):
    from trainer.config import PretrainConfig

    (tmp_path / "c.yaml").write_text("pair: halves\n")
    (tmp_path / "d.yaml").write_text("pair: {kind: crops, seconds: 3}\n")
    for path, words, wanted in (
        (None, [], PairConfig()),
        (None, ["pair=crops", "pair.seconds=4"], PairConfig("crops", 4.0)),
        (None, ["pair.seconds=4", "pair=crops"], PairConfig("crops", 4.0)),
        ("c.yaml", [], PairConfig("halves")),
        ("c.yaml", ["pair.kind=patient"], PairConfig("patient")),
        ("d.yaml", ["pair=same"], PairConfig("same", 3.0)),
    ):
        assert load(PretrainConfig, path and tmp_path / path, words).pair == wanted
    for word in ("pair=[same]", "pair=3", "pair=true", "pair="):
        with pytest.raises(UserError, match=r"pair"):
            load(PretrainConfig, None, [word]).pair.check()
