"""The audit of a mixture, by records that are right, and with one fault each."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trainer.data.audit import describe, judge, main
from trainer.data.audit_records import Recorder, next_start
from trainer.data.mixtures import Mixtures, Offered, current, mixtures
from umbra.schema import Geometry, Manifest, Shard, fingerprint

BATCH, HELD_OUT = 8, 3
COUNTS = {"a": (10, 0, 7, 13), "b": (8, 9), "c": (25,)}


def manifest_of(name: str) -> Manifest:
    """Held-out samples come first, so that a row is not the number of a training sample."""
    geometry = Geometry(2, 40, 64 * ord(name))
    splits = [("val", HELD_OUT), *[("train", n) for n in COUNTS[name]]]
    shards = [Shard(f"{s}-{i:06d}.tar", s, n, geometry.shard_bytes(n), "0" * 64) for i, (s, n) in enumerate(splits)]
    words = (fingerprint(shards, geometry, 100.0, ["I", "II"], 1.0), 100.0, ["I", "II"], 40, 1.0, geometry.meta_bytes)
    return Manifest(*words, shards, lead_mean_mv=[0.0] * 2, lead_std_mv=[1.0] * 2, patient_ids=True, key_id="public")


MANIFESTS = {name: manifest_of(name) for name in COUNTS}


def offered(names: str) -> dict[str, Offered]:
    shards = {n: {s.name: s.samples for s in MANIFESTS[n].of_split("train")} for n in names}
    return {n: Offered(MANIFESTS[n].fingerprint, "public", 1, shards[n]) for n in names}


def play(run: Path, names: str, start: int, stop: int, world=1, weights=None, exclude=(), before=(), change=None):
    """One start of a run that mixes the sources `names`, resumed at `start`; returns its mixtures, for the next one.

    `change` may alter (step, rows [micro, share] of rank 0); `before`: the mixtures of the checkpoint.
    """
    saved = {"step": start, "mixtures": list(before)} if before else {}
    kept: Mixtures = mixtures(offered(names), weights or {}, exclude, saved, BATCH, 4)
    mixture = current(kept, offered(names), 3, BATCH, 4, 2, 2)
    rows, sources, bases = [], [], 0
    for name in names:
        one = kept[-1][1][name]
        rows += [bases + HELD_OUT + i for i in range(sum(COUNTS[name]))]
        keys = ("fingerprint", "share", "excluded", "epoch", "start")
        sources.append({"name": name, "first": bases, **{key: one[key] for key in keys}})
        bases += HELD_OUT + sum(COUNTS[name])
    head = {"since": mixture.first, "sources": sources}
    joint, number = Manifest(**vars(MANIFESTS[names[0]]) | {"fingerprint": "+".join(names)}), next_start(run)
    for rank in range(world):
        words = (run, joint, number, start, BATCH, rank, world)
        recorder = Recorder(*words, mixed=head, manifests={name: MANIFESTS[name] for name in names})
        for step in range(start, stop):
            taken = np.array(rows)[mixture.step(step, rank, world)]
            recorder.add(step, step, change(step, taken.copy()) if change and rank == 0 else taken)
        recorder.close()
    return kept


def test_sources_that_come_and_go_at_any_world_size_are_proven_each_for_itself(tmp_path, capsys):
    kept = play(tmp_path, "ab", 0, 9, weights={"a": 3, "b": 1})
    play(tmp_path, "ab", 5, 12, world=2, weights={"a": 3, "b": 1}, before=kept)  # resumed from step 5, unchanged
    kept = play(tmp_path, "ab", 10, 21, world=4, weights={"a": 1, "b": 1}, before=kept)
    kept = play(tmp_path, "ac", 20, 30, world=2, before=kept)  # without b
    kept = play(tmp_path, "abc", 30, 46, before=kept, exclude=["a/train-000001.tar"])
    verdict = judge(tmp_path)
    assert verdict.problems == []
    assert verdict.struck == 4 + 2 + 1
    of = {name: [e for e in verdict.epochs if e.source == name] for name in "abc"}
    assert [e.state for e in of["b"]] == [*["complete"] * 3, "cut", "complete", "complete", "unfinished"]
    assert [e.seen for e in of["b"][:3]] == [17, 17, 17]
    assert [e.number for e in of["b"]] == list(range(7))
    assert of["b"][3].last == 19
    assert of["b"][4].first == 30
    assert "cut" in [e.state for e in of["a"]]  # the shards of a changed at step 30
    assert {e.due for e in of["a"]} == {30, 20}
    assert sum(e.seen for e in verdict.epochs) == 46 * BATCH
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"proven: \d+ complete epochs of 3 sources, no sample twice in any epoch", printed)
    assert "a, epoch 0: steps 0 to 4, complete: 30 samples, each once" in printed
    assert describe(of["b"][3]) in printed
    assert "ended by a change of the mixture" in describe(of["b"][3])
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["epochs"][0]["source"] == "a"


def repeat(at: int):
    """A sample of that step comes again in the next one, instead of another one of its source."""
    held: dict[str, int] = {}

    def change(step, rows):
        a = np.flatnonzero((rows >= HELD_OUT) & (rows < HELD_OUT + 30))
        if step == at:
            held["row"] = rows.ravel()[a[0]]
        if step == at + 1:
            rows.ravel()[a[0]] = held["row"]
        return rows

    return change


def replaced(step_of_fault: int, row: int):
    def change(step, rows):
        if step == step_of_fault:
            rows.ravel()[np.flatnonzero(rows < HELD_OUT + 30)[0]] = row
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (repeat(0), r"a, epoch 0: steps 0 on: 1 samples were seen more than once: \d+"),
        (repeat(0), r"a, epoch 0: ended in step 7 without 1 of its samples: \d+"),
        (
            replaced(2, 1),
            r"a, epoch 0: steps 0 on: 1 samples not of the training split, or excluded: 1 \(val-000000.tar\)",
        ),
        (replaced(2, 3 + 11), r"a, epoch 0: steps 0 on: 1 samples were seen more than once: 14"),
        (replaced(2, 3 + 30 + 3 + 2), r"b: after step 2 13 samples were taken of it, its weight says 12.00"),
        (replaced(4, 500), r"steps 0 on: row 500 is of no source"),
    ],
)
def test_a_planted_fault_is_named(tmp_path, capsys, change, words):
    play(tmp_path, "ab", 0, 12, world=2, weights={"a": 1, "b": 1}, change=change)
    problems = judge(tmp_path).problems
    assert any(re.search(words, problem) for problem in problems), problems
    assert main([str(tmp_path)]) == 1
    assert "proven" not in capsys.readouterr().out


def test_a_source_that_does_not_go_on_where_it_stood_is_named(tmp_path):
    kept = play(tmp_path, "ab", 0, 4, weights={"a": 1, "b": 1})
    forgotten = [(4, {n: one | {"epoch": 0, "start": 0} for n, one in kept[0][1].items()})]
    play(tmp_path, "ab", 4, 9, weights={"a": 1, "b": 1}, before=[(0, forgotten[0][1])])
    assert judge(tmp_path).problems == []  # the same as before: it did go on
    for path in (tmp_path / "audit").glob("start-00002*"):
        path.unlink()
    play(tmp_path, "ab", 4, 9, weights={"a": 2, "b": 1})  # as a new run: from the beginning of both
    problems = " ".join(judge(tmp_path).problems)
    assert "begins in epoch 0 after 0 samples, but the records before it end in epoch 0 after 16" in problems
    assert "seen more than once" in problems


def test_a_lost_record_is_no_proof(tmp_path):
    kept = play(tmp_path, "ab", 0, 9, world=2)
    play(tmp_path, "ab", 9, 12, before=kept)
    next((tmp_path / "audit").glob("start-00001.rank-00001.bin")).unlink()
    assert judge(tmp_path).problems[0] == "steps 0 to 8 are not in the records of all 2 processes"
    assert main([str(tmp_path)]) == 1
