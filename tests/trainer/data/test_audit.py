import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.data.audit import describe, judge, main
from trainer.data.audit_records import Recorder, next_start
from trainer.data.order import Order
from umbra.errors import UserError
from umbra.schema import Geometry, Manifest, Shard, fingerprint

COUNTS = (11, 0, 7, 13, 9, 12)  # train: 52 samples
BATCH = 8  # 6 steps an epoch, 4 samples not seen


def manifest_of(counts=COUNTS, held_out=10, split="val") -> Manifest:
    """Held-out samples come first, so that a row is not the number of a training sample."""
    geometry = Geometry(2, 40, 64)
    splits = [(split, held_out), *[("train", n) for n in counts]]
    shards = [Shard(f"{s}-{i:06d}.tar", s, n, geometry.shard_bytes(n), "0" * 64) for i, (s, n) in enumerate(splits)]
    words = (fingerprint(shards, geometry, 100.0, ["I", "II"], 1.0), 100.0, ["I", "II"], 40, 1.0, 64, shards)
    return Manifest(*words, lead_mean_mv=[0.0] * 2, lead_std_mv=[1.0] * 2, patient_ids=True, key_id="public")


MANIFEST = manifest_of()


def order_of(counts=COUNTS, seed=3) -> Order:
    return Order(tuple(counts), seed, BATCH, 4, 2, block=2)


def play(run: Path, start: int, stop: int, world: int, order=None, late=(), excluded=(), offset=0, change=None) -> None:
    """One start of a run: every rank does the steps `start` to `stop - 1`; the ranks `late` were killed a step before.

    `change` may alter (step, rank, epoch, rows) of a record. Steps of the order are `offset` ahead of those of the run.
    """
    order, number = order or order_of(), next_start(run)
    for rank in range(world):
        recorder = Recorder(run, MANIFEST, number, start, BATCH, rank, world, excluded)
        for step in range(start, stop - (rank in late)):
            rows = order.step(step + offset, rank, world) + MANIFEST.first_row("train")
            epoch = (step + offset) // order.steps_per_epoch
            if change:
                epoch, rows = change(step, rank, epoch, rows.copy())
            recorder.add(step, epoch, rows)
        recorder.close()


def files(run: Path) -> list[Path]:
    return sorted((run / "audit").glob("*.bin"))


def test_worlds_of_1_2_4_and_1_with_kills_between_make_complete_epochs(tmp_path, capsys):
    play(tmp_path, 0, 9, world=1)
    play(tmp_path, 5, 11, world=2, late=[1])  # resumed from the checkpoint of step 5; killed
    play(tmp_path, 10, 17, world=4, late=[0, 2])
    play(tmp_path, 10, 10, world=4)  # killed before its first step
    play(tmp_path, 10, 16, world=4, late=[3])
    with open(files(tmp_path)[-1], "ab") as file:
        file.write(b"cut")  # a record that a kill cut
    play(tmp_path, 14, 27, world=1)
    verdict = judge(tmp_path)
    assert verdict.problems == []
    assert [(e.number, e.first, e.last, e.state, e.seen) for e in verdict.epochs] == [
        (0, 0, 5, "complete", 48),
        (1, 6, 11, "complete", 48),
        (2, 12, 17, "complete", 48),
        (3, 18, 23, "complete", 48),
        (4, 24, 26, "unfinished", 24),
    ]
    assert verdict.struck == (9 - 5) + (11 - 10) + (17 - 10) + (16 - 14)
    order, first = order_of(), 10
    for epoch in verdict.epochs[:4]:
        seen = {int(i) for s in range(6) for i in order.step(6 * epoch.number + s).ravel()}
        assert epoch.remainder == [first + i for i in range(52) if i not in seen]
        assert len(epoch.remainder) == 4
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "discarded: 14 steps" in printed.out
    assert "proven: 4 complete epochs" in printed.out
    assert describe(verdict.epochs[0]) in printed.out
    report = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert report["epochs"][0]["remainder"] == verdict.epochs[0].remainder


def test_the_line_is_what_the_last_start_did_even_where_it_differs(tmp_path):
    """The epoch is whole only with the steps of the second start, which went another way from step 3 on."""
    other = order_of(seed=4)
    play(tmp_path, 0, 6, world=1)
    rows = [order_of().step(s).ravel() for s in range(3)]
    left = np.setdiff1d(np.arange(52), np.concatenate(rows))[:24].reshape(3, 2, 4)

    def change(step, rank, epoch, old):
        return epoch, left[step - 3] + 10

    play(tmp_path, 3, 6, world=1, order=other, change=change)
    verdict = judge(tmp_path)
    assert verdict.problems == []
    assert (verdict.epochs[0].state, verdict.struck) == ("complete", 3)
    shutil.rmtree(tmp_path / "audit")
    play(tmp_path, 0, 6, world=1)
    play(tmp_path, 3, 6, world=1, order=other)
    assert "seen more than once" in judge(tmp_path).problems[0]


def test_a_start_further_back_strikes_out_all_that_came_before_it(tmp_path):
    play(tmp_path, 0, 11, world=1)
    play(tmp_path, 10, 11, world=2)
    play(tmp_path, 5, 12, world=1)
    verdict = judge(tmp_path)
    assert verdict.problems == []
    assert ([e.state for e in verdict.epochs], verdict.struck) == (["complete"] * 2, 6 + 1)


def wrong_row(row, at=(2, 0)):
    def change(step, rank, epoch, rows):
        if (step, rank) == at:
            rows[0, 0] = row(rows) if callable(row) else row
        return epoch, rows

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_row(4), r"1 samples were not of the training split, or excluded: 4 \(val-000000.tar\)"),
        (wrong_row(lambda rows: rows[0, 1]), r"1 samples were seen more than once"),
        (wrong_row(999), r"row 999 is not in the data set"),
        (lambda step, rank, epoch, rows: (0, rows), r"epoch 0 has 12 steps, but 52 samples give 6"),
        (lambda step, rank, epoch, rows: (epoch + (step == 5), rows), r"epoch 0 ended after 5 of 6 steps"),
        (lambda step, rank, epoch, rows: (2 * epoch, rows), r"epoch 2 \(from step 6\) follows epoch 0 \(to 5\)"),
        (lambda step, rank, epoch, rows: (epoch + 1, rows), r"the first epoch in the records is 1"),
        (lambda step, rank, epoch, rows: (epoch + rank * (step > 6), rows), r"step 7: the processes disagree"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, change, words):
    play(tmp_path, 0, 12, world=2, change=change)
    verdict = judge(tmp_path)
    assert any(re.search(words, problem) for problem in verdict.problems), verdict.problems
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "error: " in printed.err
    assert "proven" not in printed.out


def test_records_that_are_missing_are_named(tmp_path):
    play(tmp_path, 0, 9, world=2, late=[1])
    play(tmp_path, 9, 12, world=1)
    assert judge(tmp_path).problems[0] == "steps 8 to 8 are not in the records of all 2 processes"
    files(tmp_path)[1].unlink()
    assert "steps 0 to 8 are not in the records of all 2 processes" in judge(tmp_path).problems
    files(tmp_path)[0].unlink()
    assert "steps 0 to 8 have no records: was data.audit off?" in judge(tmp_path).problems


def test_a_damaged_record_is_named_and_a_cut_one_ends_the_line(tmp_path):
    play(tmp_path, 0, 9, world=1)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    for size in (1, 5, 47, 49):
        path.write_bytes(whole[:-size])
        verdict = judge(tmp_path)
        assert verdict.problems == []
        assert verdict.epochs[-1].last == 7 - (size == 49)
    path.write_bytes(whole[:-96] + bytes(96))  # a power loss left zeros
    assert (judge(tmp_path).problems, judge(tmp_path).epochs[-1].last) == ([], 6)
    path.write_bytes(whole[:-100] + b"\xff" + whole[-99:])
    assert "the record of step 6 is damaged" in judge(tmp_path).problems[0]
    path.write_bytes(whole[:20])
    assert judge(tmp_path).epochs == []


def test_a_change_of_excluded_shards_begins_the_next_epoch_and_keeps_the_shard_out(tmp_path):
    """From step 8 on, in the middle of epoch 1, shard train-000004 (13 samples) is left out: epoch 2 begins there."""
    bad = "train-000004.tar"
    counts = [n if n != 13 else 0 for n in COUNTS]  # 39 samples, 4 steps an epoch
    play(tmp_path, 0, 9, world=2)
    play(tmp_path, 8, 19, world=1, order=order_of(counts), excluded=[bad], offset=2 * 4 - 8, change=_shifted)
    verdict = judge(tmp_path)
    assert verdict.problems == []
    assert [(e.number, e.first, e.last, e.state) for e in verdict.epochs] == [
        (0, 0, 5, "complete"),
        (1, 6, 7, "cut"),
        (2, 8, 11, "complete"),
        (3, 12, 15, "complete"),
        (4, 16, 18, "unfinished"),
    ]
    assert len(verdict.epochs[2].remainder) == 39 - 32
    shutil.rmtree(tmp_path / "audit")
    play(tmp_path, 0, 6, world=1, excluded=[bad])
    problems = " ".join(judge(tmp_path).problems)
    assert "not of the training split, or excluded" in problems
    assert "(train-000004.tar)" in problems
    assert "epoch 0 has 6 steps, but 39 samples give 4" in problems


def _shifted(step, rank, epoch, rows):
    """Samples of an order without a shard, as rows: those behind that shard lie 13 further on."""
    behind = rows >= 10 + 11 + 0 + 7
    return epoch, rows + 13 * behind


def test_two_runs_of_one_folder_must_be_of_one_data_set_and_batch(tmp_path):
    play(tmp_path, 0, 4, world=1)
    recorder = Recorder(tmp_path, manifest_of((9, 9)), next_start(tmp_path), 4, BATCH, 0, 1)
    recorder.close()
    assert any("another data set" in p for p in judge(tmp_path).problems)


def test_a_recorder_refuses_a_step_out_of_turn_and_an_old_name(tmp_path):
    recorder = Recorder(tmp_path, MANIFEST, 1, 3, BATCH, 0, 2)
    with pytest.raises(ValueError, match="expected step 3, not 4"):
        recorder.add(4, 0, np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="broadcast"):
        recorder.add(3, 0, np.zeros(5, np.int64))
    with pytest.raises(FileExistsError):
        Recorder(tmp_path, MANIFEST, 1, 3, BATCH, 0, 2)
    assert next_start(tmp_path) == 2


def test_a_full_disk_is_one_clear_line(tmp_path):
    recorder = Recorder(tmp_path, MANIFEST, 1, 0, BATCH, 0, 2)
    recorder._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"No space left on device; free some space, or set data.audit=false"):
        recorder.add(0, 0, np.zeros(4, np.int64))


def test_the_command(tmp_path):
    play(tmp_path, 0, 6, world=1)
    words = [sys.executable, "-m", "trainer.data.audit", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(
        "epoch 0: steps 0 to 5, complete: 48 samples, each once; 4 not seen: "
    )
    with pytest.raises(UserError, match=r"has no records: train with data.audit=true"):
        judge(tmp_path / "none")
    with pytest.raises(UserError, match="give one run directory"):
        main([])


def test_a_run_without_a_step_on_record_proves_nothing(tmp_path):
    play(tmp_path, 0, 0, world=2)
    with pytest.raises(UserError, match="no recorded step"):
        main([str(tmp_path)])
