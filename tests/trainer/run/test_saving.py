"""Checkpoints of one process: at once and in the background, also where they cannot be written."""

import threading
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.saved_engine import Engine, saver
from trainer.run import checkpoint, saving
from trainer.run.saving import NotSaved
from umbra.files import read_json

BOTH = pytest.mark.parametrize("background", [False, True], ids=["at once", "background"])


def both(value):
    return {"encoder": Engine(value), "masker": Engine(-value)}


class Slow:
    """A writer that waits until it may go on."""

    def __init__(self):
        self.goes_on, self.began = threading.Event(), threading.Event()

    def save(self, state_dict, path):
        self.began.set()
        assert self.goes_on.wait(60)
        torch.save(state_dict, path)


class Full:
    """DeepSpeed's writer on a full disk."""

    def save(self, *args, **kwargs):
        try:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0")


@BOTH
def test_the_newest_committed_ones_stay_by_number_and_what_a_killed_run_left_goes(background, tmp_path):
    saves = saver(tmp_path)
    for step in (9, 10):
        saves.save(step, both(step), {}, background)
    saves.finish()
    (tmp_path / "checkpoints" / "step-200").mkdir()
    (tmp_path / "checkpoints" / "step-x").mkdir()
    (tmp_path / "checkpoints" / "step-x" / checkpoint.MARKER).touch()
    saves.save(100, both(100), {}, background)
    saves.finish()
    assert list(checkpoint.committed(tmp_path)) == [10, 100]
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step-100"
    assert checkpoint.newest(tmp_path / "nothing") is None
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-10", "step-100", "step-x"}


def test_in_the_background_it_is_committed_once_written_with_the_state_of_its_step(tmp_path):
    saves, engines, slow = saver(tmp_path), both(5), Slow()
    engines["encoder"].checkpoint_engine = slow
    state = {"config": {"lr": [1]}}
    saves.save(5, engines, state, background=True)
    assert slow.began.wait(60)
    torch.nn.init.constant_(engines["encoder"].module.weight, 6)
    state["config"]["lr"].append(2)
    saves.look()
    assert checkpoint.newest(tmp_path) is None
    slow.goes_on.set()
    while checkpoint.newest(tmp_path) is None:
        saves.look()
    path = checkpoint.newest(tmp_path)
    assert (torch.load(path / "encoder.pt")["weight"] == 5).all()
    assert (load_file(path / "weights.safetensors")["weight"] == 5).all()
    assert read_json(path / "state.json", "") == {"step": 5, "config": {"lr": [1]}}
    saves.finish()


def test_of_two_saves_in_quick_succession_the_second_waits_for_the_first(tmp_path, monkeypatch):
    saves, engines, slow = saver(tmp_path), both(5), Slow()
    engines["encoder"].checkpoint_engine = slow
    saves.save(5, engines, {}, background=True)
    seen = []
    agree = saving._agree
    monkeypatch.setattr(
        saving, "_agree", lambda *words: (seen.append(list(checkpoint.committed(tmp_path))), agree(*words))
    )
    threading.Timer(0.2, slow.goes_on.set).start()
    saves.save(6, engines, {}, background=True)
    assert seen == [[], [5], [5]]  # written, marked; then the next began
    saves.finish()
    assert list(checkpoint.committed(tmp_path)) == [5, 6]


@BOTH
@pytest.mark.parametrize("where", ["engine", "weights.safetensors", "COMMITTED"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before_it(where, background, tmp_path, monkeypatch):
    saves, engine, words = saver(tmp_path), Engine(6), "No space left on device"
    kept = saves.save(5, both(5), {})

    def refusing(write):
        def maybe(path, *more):
            if path.name == where:
                raise OSError(28, words)
            return write(path, *more)

        return maybe

    with monkeypatch.context() as full:
        for name in ("write_text", "save_weights"):
            full.setattr(saving, name, refusing(getattr(saving, name)))
        if where == "engine":
            words, engine.checkpoint_engine = "file write failed", Full()
        with pytest.raises(NotSaved, match=rf"step-6 could not be written by rank 0 \(.*{words}\), .*step-5 stays"):
            steps_until_written(saves, {"encoder": engine}, background)
    assert checkpoint.newest(tmp_path) == kept
    assert not (tmp_path / "checkpoints" / "step-6").exists()
    assert saves.save(7, both(7), {}) == checkpoint.newest(tmp_path)
    assert where != "engine" or not vars(engine.checkpoint_engine)


def test_a_folder_of_an_engine_that_cannot_be_made_is_seen_before_deepspeed_begins(tmp_path, monkeypatch):
    """As where no more files are allowed."""
    saves, mkdir = saver(tmp_path), Path.mkdir
    kept = saves.save(5, both(5), {})

    def full(path, *more, **words):
        if path.name == "state":
            raise OSError(122, "Disk quota exceeded")
        mkdir(path, *more, **words)

    with monkeypatch.context() as now:
        now.setattr(Path, "mkdir", full)
        with pytest.raises(NotSaved, match=r"by rank 0 \(\[Errno 122\] Disk quota exceeded\), .*step-5 stays"):
            saves.save(6, both(6), {})
    assert checkpoint.newest(tmp_path) == kept
    assert not (tmp_path / "checkpoints" / "step-6").exists()


def test_a_run_directory_that_is_gone_is_not_made_anew(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    (run / "run.json").touch()
    saves = saver(run)
    kept = saves.save(5, both(5), {})
    run.rename(away)
    with pytest.raises(
        NotSaved, match=r"run/run\.json is gone\), there is none before it: is the disk full, or gone\?"
    ):
        saves.save(6, both(6), {})
    assert not run.exists()
    away.rename(run)
    saves.save(7, both(7), {})
    assert list(checkpoint.committed(run)) == [5, 7]
    assert kept.is_dir()


def steps_until_written(saves, engines, background):
    saves.save(6, engines, {}, background)
    while background:
        saves.look()


def test_an_error_that_is_no_matter_of_disks_is_raised_as_it_is(tmp_path):
    saves, engine = saver(tmp_path), Engine(1)
    engine.checkpoint_engine = types.SimpleNamespace(save=lambda **words: {}["key"])
    with pytest.raises(KeyError):
        saves.save(1, {"encoder": engine}, {})
