"""The run directory of a real run is taken away while it trains: it says so, and puts no half of it in its place."""

import signal
import time

import pytest

from tests.support.launch import finish, start
from tests.support.pretrain_words import losses, run_words
from trainer.run.checkpoint import committed

pytest_plugins = ["tests.support.one_run"]  # the fixtures shards and run
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def test_a_run_whose_folder_is_gone_warns_and_ends_with_a_line_if_it_does_not_come_back(shards, run, tmp_path):
    process = start(run_words(shards, run, "steps=100000", "checkpoint.every=2"))
    end = time.monotonic() + 200
    while not committed(run):
        assert time.monotonic() < end
        time.sleep(0.02)
    away = run.rename(tmp_path / "away")
    seen = len(losses(away))
    while len(losses(away)) < seen + 4:  # its open files go with it
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not run.exists()
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 2, output[-3000:]
    warned = [line for line in output.splitlines() if line.startswith("# WARNING: ")]
    assert any("run.json is gone), there is none before it: is the disk full, or gone?" in line for line in warned)
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, output[-3000:]
    assert "run.json is gone" in said[0]
    assert "Traceback" not in output
    assert committed(away)
