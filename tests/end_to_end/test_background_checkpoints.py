"""Checkpoints that are written while a real run goes on: killed in the midst, and on a disk that is slow."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.launch import ROOT, finish, launch, start
from tests.support.pretrain_words import losses, run_words
from trainer.run.checkpoint import begun, committed

pytest_plugins = ["tests.support.one_run"]  # the fixtures shards and run
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def with_hook(monkeypatch, name, **variables):
    """The audit hook in a folder of tests/support, in every process."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests/support' / name}{os.pathsep}{ROOT}")
    for key, value in variables.items():
        monkeypatch.setenv(key, value)


def test_a_run_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(shards, run, tmp_path, monkeypatch):
    words = ["steps=6", "checkpoint.every=2"]
    with monkeypatch.context() as killing:
        with_hook(killing, "killed_before", KILLED_BEFORE="step-4/weights.safetensors")
        assert launch(run_words(shards, run, *words))[0] == -signal.SIGKILL
    assert list(committed(run)) == [2]
    assert list(begun(run)) == [2, 4]
    code, output = launch(run_words(shards, run, *words))
    assert code == 0, output[-3000:]
    assert "step 2 to 6" in output
    at_once = tmp_path / "at-once"
    assert launch(run_words(shards, at_once, *words, "checkpoint.asynchronous=false"))[0] == 0
    assert losses(run) == losses(at_once)
    ours, theirs = (load_file(committed(where)[6] / "weights.safetensors") for where in (run, at_once))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(begun(run)) == [4, 6]


def test_a_run_goes_on_while_a_slow_disk_writes_and_waits_for_it_at_its_end(shards, run, monkeypatch):
    with_hook(monkeypatch, "stopped_at", STOPPED_AT="0 os.rename step-2/COMMITTED", STOPPED_FOR="15", RANK="0")
    process = start(run_words(shards, run, "steps=100000", "checkpoint.every=2", "checkpoint.keep=9"))
    end = time.monotonic() + 200
    while not ((run / "metrics.jsonl").exists() and len(losses(run)) > 2):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert list(committed(run)) == []
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0, output[-3000:]
    first, *_, last = committed(run)
    assert first == 2
    assert f"# stopped (signal SIGTERM) with a checkpoint at step {last} of 100000" in output
    assert len(losses(run)) == last
