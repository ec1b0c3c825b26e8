import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from trainer.views import Key, build
from umbra.errors import UserError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SETS = {"I", "I II", "I II V2", "I II III V2", "I II III aVR aVL aVF", " ".join(LEADS)}


def hidden(args, batch=64, leads=LEADS, start=0, view=0):
    """bool [B, leads]: the leads that the view hides, of a signal that is zero nowhere."""
    x = torch.full((batch, len(leads), 5), 1.5)
    key = Key(1, 0, torch.arange(start, start + batch), view)
    out = build([{"name": "lead_drop", **args}], leads).mask_views(x, key, 100.0)
    assert torch.all((out == 0) | (out == x))
    assert torch.equal((out == 0).all(-1), (out == 0).any(-1))
    return (out == 0).all(-1).numpy()


def mixed(word):
    """lowbias32 in Python's integers."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    word = ((word ^ (word >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return word ^ (word >> 16)


def words(index, op, count, seed=1):
    """The 32-bit words of an operation for one sample of epoch 0, view 0."""
    states = []
    for state in (0x243F6A88, 0x85A308D3):
        for part in (seed, seed >> 32, 0, 0, zlib.crc32(op.encode()), index, index >> 32):
            state = mixed(state ^ part)
        states.append(state)
    return np.array([mixed(mixed(element ^ states[0]) ^ states[1]) for element in range(count)])


def test_equals_a_reference_in_numpy_sample_by_sample():
    drawn = hidden({"p": 0.7, "keep": 3}, batch=200, start=7)
    for row, index in zip(drawn, range(7, 207)):
        expected = np.zeros(12, bool)
        if (words(index, "lead_drop.chosen", 1)[0] >> 8) / 2**24 < 0.7:
            kept = 3 + int(words(index, "lead_drop.kept", 1)[0]) * 9 // 2**32
            expected[np.argsort(words(index, "lead_drop.lead", 12) >> 8, kind="stable")[kept:]] = True
        assert row.tolist() == expected.tolist()


def test_numbers_of_leads_and_leads_are_uniform_and_the_share_is_p():
    drawn = hidden({"p": 0.6, "keep": 4}, batch=20_000)
    counts = np.bincount(12 - drawn.sum(1), minlength=13)
    assert counts[:4].sum() == 0
    assert stats.binomtest(int(counts[12]), 20_000, 0.4).pvalue > 1e-4
    assert stats.chisquare(counts[4:12]).pvalue > 1e-4
    assert stats.chisquare(drawn.sum(0)).pvalue > 1e-4


@pytest.mark.parametrize("keep", [1, 6, 11])
def test_at_least_keep_leads_remain_and_one_is_hidden_where_the_ecg_is_chosen(keep):
    shown = 12 - hidden({"p": 1, "keep": keep}, batch=500).sum(1)
    assert (shown.min(), shown.max()) == (keep, 11)
    assert not hidden({"p": 0}).any()


def test_subsets_are_those_of_the_challenge_each_as_often():
    drawn = hidden({"p": 1, "subsets": [12, 6, 4, 3, 2, 1]}, batch=6000)
    names, counts = np.unique([" ".join(np.array(LEADS)[~row]) for row in drawn], return_counts=True)
    assert set(names) == SETS
    assert stats.chisquare(counts).pvalue > 1e-4


def test_subsets_go_by_the_names_of_the_leads_and_not_by_their_places():
    assert hidden({"p": 1, "subsets": [2]}, leads=("V6", "II", "I")).tolist() == [[True, False, False]] * 64


@pytest.mark.parametrize("args", [{}, {"subsets": [6, 2]}])
def test_a_sample_draws_the_same_alone_and_in_any_batch_and_another_in_another_view(args):
    together = hidden(args, batch=40)
    assert np.array_equal(together, np.concatenate([hidden(args, batch=1, start=i) for i in range(40)]))
    assert not np.array_equal(together, hidden(args, batch=40, view=1))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"p": 1.5}, "p must be 0 to 1, not 1.5"),
        ({"p": float("nan")}, "p must be a finite number"),
        ({"keep": 0}, r"keep must be at least 1 and below the number of leads \(12\), not 0"),
        ({"keep": 12}, "keep must be at least 1 and below"),
        ({"keep": 2, "subsets": [6]}, "keep has no effect with subsets"),
        ({"subsets": [5]}, "subsets has 5, known are those of 12, 6, 4, 3, 2, 1 leads"),
        ({"subsets": 6}, "subsets must be of type list"),
        ({"subset": [6]}, "unknown argument 'subset'; did you mean 'subsets'"),
    ],
)
def test_mistakes_are_named(args, said):
    with pytest.raises(UserError, match=f"view 'lead_drop': {said}") as caught:
        build([{"name": "lead_drop", **args}], LEADS)
    assert "\n" not in str(caught.value)


def test_a_set_that_the_data_lack_is_named():
    with pytest.raises(UserError, match="subsets has 3, but the data lack lead V2"):
        build([{"name": "lead_drop", "subsets": [2, 3]}], ("I", "II", "V1"))


def test_of_one_lead_none_can_be_dropped():
    with pytest.raises(UserError, match=r"below the number of leads \(1\)"):
        build(["lead_drop"], ("I",))
