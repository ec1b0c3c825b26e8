"""Ctrl-C, a closed terminal and signals to a real run: what a person sees, and that the run goes on from there."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time

import pytest

from tests.support.launch import finish, free_port, launch, start
from tests.support.pretrain_words import losses, run_words
from tests.support.pseudo_terminal import Shell
from trainer.run.checkpoint import committed

pytest_plugins = ["tests.support.one_run"]  # the fixtures shards and run
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
SAVING = "# Ctrl-C: saving, Ctrl-C again ends now"


@pytest.fixture
def shell():
    shell = Shell()
    yield shell
    with contextlib.suppress(ProcessLookupError):
        os.kill(shell.pid, signal.SIGHUP)


def words(shards, run, *more):
    return run_words(shards, run, "steps=100000", "wandb.mode=offline", *more)


def launched(shards, run, *more):
    return ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), *words(shards, run, *more)]


def status(run):
    return json.loads((run / "run.json").read_text())["status"]


def goes_on(shards, run):
    """From its only checkpoint, one step."""
    (step,) = committed(run)
    code, output = launch(words(shards, run, f"steps={step + 1}"))
    assert code == 0, output[-3000:]
    assert f"step {step} to {step + 1}" in output
    assert len(losses(run)) == step + 1


def test_ctrl_c_under_the_launcher_is_one_line_at_once_and_one_at_the_end(shards, run, shell):
    shell.run(launched(shards, run))
    shell.until(r"step +3/")
    shell.type("\x03")
    told = shell.until(r"code=\d+")
    lines = [line for line in told.replace("^C", "").splitlines() if line.strip()]
    ours = [line for line in lines if not re.match(r"step +\d|\[20\d\d-|code=|\$|# W&B is offline", line)]
    (step,) = committed(run)
    end = f"# stopped (Ctrl-C) with a checkpoint at step {step} of 100000; next: the same command resumes from here"
    assert ours == [SAVING, end], told
    assert "code=0" in told
    assert "Killing" not in told
    assert status(run) == "interrupted"
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.full
def test_ctrl_z_stops_all_processes_and_fg_goes_on(shards, run, shell):
    shell.run(launched(shards, run))
    shell.until(r"step +3/")
    shell.type("\x1a")
    shell.until("Stopped")
    seen = len((run / "metrics.jsonl").read_text().splitlines())
    time.sleep(2)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == seen
    shell.type("fg\n")
    shell.until(r"step +\d+/")
    shell.type("\x03")
    told = shell.until(r"# stopped \(Ctrl-C\)")
    assert SAVING in told
    assert "Traceback" not in told
    goes_on(shards, run)


@pytest.mark.full
def test_the_second_ctrl_c_ends_it_and_the_last_checkpoint_stays(shards, run, shell):
    shell.run(launched(shards, run, "checkpoint.every=2"))
    shell.until(r"step +5/")
    shell.type("\x03")
    shell.until(SAVING)
    shell.type("\x03")
    told = shell.until(r"code=\d+", 60)
    assert "Traceback" not in told
    assert committed(run)


@pytest.mark.full
@pytest.mark.parametrize("launcher", [True, False])
def test_a_closed_terminal_saves(launcher, shards, run, shell):
    shell.run(launched(shards, run) if launcher else [sys.executable, *words(shards, run)])
    shell.until(r"step +3/")
    shell.close()
    end = time.monotonic() + 100
    while status(run) == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert status(run) == "interrupted"
    time.sleep(5)  # the lock is held until the processes end
    goes_on(shards, run)


@pytest.mark.full
def test_ctrl_c_saves_where_tee_ends_first(shards, run, shell, tmp_path):
    shell.run([sys.executable, *words(shards, run)], f" | tee {tmp_path / 'log'}")
    shell.until(r"step +3/")
    shell.type("\x03")
    assert "Traceback" not in shell.until(r"code=\d|\n\$ $", 100)
    assert status(run) == "interrupted"
    goes_on(shards, run)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_saves_and_our_processes_are_quiet(number, shards, run):
    """Without a terminal: the launcher's own traceback stays, nothing of W&B's or ours."""
    process = start(words(shards, run), 2)
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, output = finish(process)
    assert "site-packages/wandb" not in output, output[-4000:]  # one line if the launcher killed its service
    assert f"# stopped ({'Ctrl-C' if number == signal.SIGINT else 'signal SIGTERM'})" in output or "asked" in output
    assert status(run) == "interrupted"
    goes_on(shards, run)
