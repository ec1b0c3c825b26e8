"""Which trials a process runs when several share a study; a trial is here a file that is written."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from trainer.study import share
from trainer.study.cells import Trial
from trainer.study.config import StudyConfig
from trainer.study.share import Share, in_turn
from trainer.study.workers import slice_of
from umbra.errors import UserError
from umbra.lock import lock

METHODS = ["random", "adversarial", "none"]


def study_of(output, **keys):
    keys = {"rotations": [0, 1, 2], "seeds": [0, 1], "methods": METHODS} | keys
    return StudyConfig(name="s", data="d", output=str(output), **keys)


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The trials that were run, in order; those named in `fail` fail."""
    done = []

    def run(config, trial, steps):
        time.sleep(0.02)
        done.append(trial)
        if trial.name in done_fails:
            raise UserError("no disk")
        (tmp_path / f"{trial.name}.done").touch()

    done_fails = set()
    monkeypatch.setattr(share, "run_trial", run)
    monkeypatch.setattr(share, "is_done", lambda config, trial: (tmp_path / f"{trial.name}.done").is_file())
    monkeypatch.setattr(share, "can_begin", lambda config, trial: _example_is_there(tmp_path, trial))
    run.list, run.fail = done, done_fails
    return run


def _example_is_there(folder: Path, trial: Trial) -> bool:
    example = Trial(trial.rotation, "adversarial", trial.seed)
    return trial.method != "random" or (folder / f"{example.name}.done").is_file()


def test_the_own_shares_of_all_parts_are_all_trials_once_and_begin_in_different_rotations(tmp_path):
    whole = set(in_turn(study_of(tmp_path)))
    assert len(whole) == 3 * 2 * 3
    turns = [in_turn(study_of(tmp_path, part=part, parts=5)) for part in range(5)]
    own = [turn[: len(range(part, len(whole), 5))] for part, turn in enumerate(turns)]
    assert Counter(trial for mine in own for trial in mine) == Counter(whole)
    assert all(Counter(turn) == Counter(whole) for turn in turns)
    assert {turn[0].rotation for turn in turns[:3]} == {0, 1, 2}
    assert all(trial.method != "random" for trial in in_turn(study_of(tmp_path))[:12]), "its encoder comes first"


def test_processes_that_share_a_study_run_each_trial_once(tmp_path, ran):
    parts = [Share(study_of(tmp_path, part=part, parts=3), tmp_path) for part in range(3)]
    threads = [threading.Thread(target=part.work, args=(None,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Counter(ran.list) == Counter(in_turn(study_of(tmp_path)))


def test_a_trial_is_left_to_a_process_that_lives_and_taken_from_a_dead_one(tmp_path, ran):
    config = study_of(tmp_path, rotations=[0], seeds=[0], methods=["adversarial", "none"])
    held = tmp_path / share.FOLDER / "0-none-seed0.lock"
    code = "import sys, time; from pathlib import Path; from umbra.lock import lock\n"
    code += "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(held)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        mine = Share(config, tmp_path)
        mine.work(None)
        assert [trial.method for trial in ran.list] == ["adversarial"]
        os.kill(other.pid, signal.SIGKILL)
    mine.work(None)
    assert [trial.method for trial in ran.list] == ["adversarial", "none"]


def test_a_trial_that_fails_is_left_by_who_runs_then_and_tried_by_who_starts_later(tmp_path, ran, capsys):
    config = study_of(tmp_path, methods=["adversarial", "none"], rotations=[0], seeds=[0])
    first, beside = Share(config, tmp_path), Share(config, tmp_path)
    ran.fail.add("0-adversarial-seed0")
    with pytest.raises(UserError, match="no disk"):
        first.work(None)
    beside.work(None)
    assert [trial.method for trial in ran.list] == ["adversarial", "none"]
    assert not beside.end()
    said = capsys.readouterr().out
    assert "1 of 2 trials are done" in said
    assert "trial 0-adversarial-seed0 failed: no disk" in said
    ran.fail.clear()
    Share(config, tmp_path).work(None)
    assert [trial.method for trial in ran.list] == ["adversarial", "none", "adversarial"]
    assert not list((tmp_path / share.FOLDER).glob("*.failed"))


def test_the_last_one_writes_the_table_and_who_comes_after_shows_it(tmp_path, ran, monkeypatch, capsys):
    config = study_of(tmp_path, rotations=[0], seeds=[0])
    written = []

    def report(config, output):
        written.append(output)
        (output / share.RESULTS).write_text(json.dumps({}))
        (output / "table.md").write_text("the table")

    monkeypatch.setattr(share, "report", report)
    parts = [Share(study_of(tmp_path, rotations=[0], seeds=[0], part=part, parts=2), tmp_path) for part in range(2)]
    with lock(tmp_path / share.FOLDER / "0-none-seed0.lock"):
        parts[0].work(None)
        assert not parts[0].end()
    assert not written
    parts[1].work(None)
    for part in parts:
        assert part.end()
    assert len(written) == 1
    assert "the table" in capsys.readouterr().out
    assert Share(config, tmp_path).end()
    assert len(written) == 2, "who is asked alone writes it anew"


def test_workers_have_gpus_of_their_own_as_long_as_there_are_enough():
    gpus = ["0", "1", "2", "3", "5"]
    assert [slice_of(gpus, 2, n) for n in range(2)] == [["0", "1"], ["2", "3"]]
    assert [slice_of(gpus[:2], 3, n) for n in range(3)] == [["0"], ["1"], ["0"]]
