"""What a resume makes of a run's mixtures: sources come, go, come back, and stand where their streams stood."""

import json

import numpy as np
import pytest

from trainer.data.mixtures import Mixtures, Offered, current, ever, fingerprint, mixtures
from umbra.errors import UserError

A = Offered("fa", "k1", 9, {"a0": 10, "a1": 7, "a2": 13})
B = Offered("fb", "k2", 5, {"b0": 8, "b1": 8})
C = Offered("fc", "k1", 4, {"c0": 20})
BATCH, LANES = 8, 4


def at(step: int, offered: dict, saved: Mixtures, weights=None, exclude=()) -> Mixtures:
    """The mixtures of a run that goes on from a checkpoint of this step, as its JSON gives them back."""
    state = {"step": step, "mixtures": json.loads(json.dumps(saved))} if saved else {}
    return mixtures(offered, weights or {}, exclude, state, BATCH, LANES)


def walk(kept: Mixtures, offered: dict, stop: int) -> dict[str, list[str]]:
    """The samples of each source that a mixture takes from its first step on, as shard/place."""
    mixture = current(kept, offered, 0, BATCH, LANES, 1, 2)
    names = [f"{n} {s}/{i}" for n, one in offered.items() for s, count in one.shards.items() for i in range(count)]
    found = [names[i] for s in range(mixture.first, stop) for i in mixture.step(s).ravel()]
    return {name: [x for x in found if x.startswith(f"{name} ")] for name in offered}


def test_a_source_that_stays_goes_on_within_its_epoch_and_the_others_begin_their_next():
    first = at(0, {"a": A, "b": B}, [])
    assert [(s, {n: (t["share"], t["lanes"], t["epoch"], t["start"]) for n, t in m.items()}) for s, m in first] == [
        (0, {"a": (15, 3, 0, 0), "b": (8, 1, 0, 0)})
    ]
    assert at(0, {"a": A, "b": B}, first) == at(3, {"a": A, "b": B}, first) == first  # nothing changed
    without = at(3, {"a": A}, first)  # 24 samples later
    taken = walk(first, {"a": A, "b": B}, 3)
    assert without[:1] == first
    assert without[1][0] == 3
    assert (without[1][1]["a"]["epoch"], without[1][1]["a"]["start"]) == (0, len(taken["a"]))
    rest = walk(without, {"a": A}, 6)["a"]
    assert len(set(taken["a"] + rest[: 30 - len(taken["a"])])) == 30  # one epoch of both mixtures
    back = at(7, {"a": A, "b": B, "c": C}, without, {"a": 2, "b": 1})
    stands = {name: (one["epoch"], one["start"]) for name, one in back[2][1].items()}
    assert stands == {"a": divmod(len(taken["a"]) + 32, 30), "b": (1, 0), "c": (0, 0)}
    assert [one["share"] for one in back[2][1].values()] == [2, 1, 1]
    assert set(ever(back)) == {"a", "b", "c"}
    assert fingerprint(back) == "fa+fb"
    again = at(3, {"a": A, "c": C}, back)  # the steps from 3 on were lost: no step was taken under what changed there
    assert [step for step, _ in again] == [0, 3]


def test_a_change_of_weights_repeats_and_loses_no_sample():
    offered, kept = {"a": A, "b": B}, []
    seen: dict[str, list[str]] = {"a": [], "b": []}
    begins = (0, 3, 5, 11, 12, 30)
    for n, (step, stop) in enumerate(zip(begins, begins[1:])):  # noqa: RUF007
        kept = at(step, offered, kept, {"a": n + 1, "b": 2})
        for name, samples in walk(kept, offered, stop).items():
            seen[name] += samples
    for name, size in (("a", 30), ("b", 16)):
        whole = len(seen[name]) // size
        assert whole > 1
        assert all(len(set(seen[name][n * size : (n + 1) * size])) == size for n in range(whole))


def test_an_exclusion_begins_the_next_epoch_of_that_source_alone():
    first = at(0, {"a": A, "b": B}, [])
    changed = at(2, {"a": A, "b": B}, first, exclude=["a/a2"])
    a, b = changed[1][1].values()
    assert (a["samples"], a["excluded"], a["epoch"], a["start"]) == (17, ["a2"], 1, 0)
    assert (b["epoch"], b["start"]) == (0, current(first, {"a": A, "b": B}, 0, BATCH, LANES, 1, 2).taken(2)[1])
    taken = walk(changed, {"a": A, "b": B}, 30)
    assert not [sample for sample in taken["a"] if "a2" in sample]
    with pytest.raises(UserError, match=r"data.exclude: a/a9 is not a training shard, SOURCE/SHARD"):
        at(2, {"a": A, "b": B}, first, exclude=["a/a9"])
    with pytest.raises(UserError, match=r"data.exclude leaves no training shard of b: leave it out of data.path"):
        at(2, {"a": A, "b": B}, first, exclude=["b/b0", "b/b1"])


def test_another_data_set_under_a_name_and_a_run_of_one_data_set_are_refused():
    first = at(0, {"a": A, "b": B}, [])
    with pytest.raises(UserError, match=r"data.path.b is another data set \(fc\) than before \(fb\)"):
        at(2, {"a": A, "b": C}, first)
    with pytest.raises(UserError, match=r"a run that began with one data set .* cannot become a mixture"):
        mixtures({"a": A}, {}, (), {"step": 3, "excluded": []}, BATCH, LANES)


def test_the_epoch_of_a_mixture_has_as_many_samples_as_its_sources_had_at_first():
    offered = {"a": A, "b": B}
    kept = at(0, offered, [])
    assert current(kept, offered, 0, BATCH, LANES, 1, 2).steps_per_epoch == 46 // BATCH
    kept = at(4, {"a": A}, kept)
    mixture = current(kept, {"a": A}, 0, BATCH, LANES, 1, 2)
    assert (mixture.steps_per_epoch, mixture.first) == (46 // BATCH, 4)
    assert np.isin(mixture.step(4), np.arange(30)).all()
