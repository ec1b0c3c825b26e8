"""Real runs of which one process is stopped or does not come: all end, with exit code 75 and one line that names it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.launch import ROOT, environment, finish, free_port, start
from tests.support.pretrain_words import losses, run_words
from tests.support.processes import in_group, rank_processes
from trainer import watchdog

pytest_plugins = ["tests.support.one_run"]  # the fixtures shards and run
HOST = socket.gethostname()
LIMITS = ["hang.minutes=0.07", "hang.start_minutes=1", "steps=100000"]


def verdict(run, output):
    """The one line of all processes, which is also the first of the verdict."""
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, said
    line = said[0]
    assert (run / "hang.txt").read_text().startswith(f"{line}\n\nrank 0 ")
    assert "Traceback" not in output
    return line


def stopped_at(monkeypatch, moment, seconds=""):
    monkeypatch.setenv("STOPPED_AT", moment)
    monkeypatch.setenv("STOPPED_FOR", seconds)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests/support/stopped_at'}{os.pathsep}{ROOT}")


def test_a_process_that_is_stopped_in_training_ends_the_run(shards, run):
    process, end = start(run_words(shards, run, *LIMITS), 2), time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and len(losses(run)) > 3):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sorted(path.name for path in (run / "heartbeat").iterdir()) == ["rank-0", "rank-1"]
    pid = rank_processes(in_group(process.pid))[1]
    os.kill(pid, signal.SIGSTOP)
    code, output = finish(process, 100)
    assert code == watchdog.HUNG, output[-3000:]
    line = verdict(run, output)
    assert f"rank 1 on {HOST} gives no sign of life (last seen in " in line
    assert not os.path.exists(f"/proc/{pid}")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


def test_what_a_rank_started_is_not_taken_for_it(monkeypatch):
    """Neither one that stays nor those that come and go while they are counted."""
    monkeypatch.setenv("RANK", "1")
    words = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
    words += "import time\nwhile time.sleep(0.02) is None: subprocess.run(['true'])"  # few, since pids come round again
    rank = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert {rank.pid, int(rank.stdout.readline())} <= set(in_group(rank.pid))
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert rank_processes(in_group(rank.pid)) == {1: rank.pid}
    finally:
        os.killpg(rank.pid, signal.SIGKILL)
        rank.communicate(timeout=60)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seconds", "said"),
    [("", "gives no sign of life (last seen in "), ("300", "hangs in checkpoint of step 4")],
)
def test_a_process_that_hangs_in_a_checkpoint(seconds, said, shards, run, monkeypatch):
    """It is stopped, or the next checkpoint waits for this one, as for a file system that does not answer."""
    stopped_at(monkeypatch, "0 os.rename COMMITTED", seconds)
    code, output = finish(start([*run_words(shards, run, *LIMITS), "checkpoint.every=2"], 2), 200)
    assert f"rank 0 on {HOST} {said}" in verdict(run, output), output[-3000:]
    assert code == watchdog.HUNG, output[-3000:]


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_in_start_up(rank, shards, run):
    process, end = start(run_words(shards, run, *LIMITS), 2), time.monotonic() + 120
    while not (run / "heartbeat" / f"rank-{rank}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    pid = rank_processes(in_group(process.pid))[rank]
    os.kill(pid, signal.SIGSTOP)
    code, output = finish(process, 200)
    assert code == watchdog.HUNG, output[-3000:]
    line = verdict(run, output)
    assert "for 1 minutes: " in line
    assert f"rank {rank} on {HOST} gives no sign of life" in line or f"rank {rank} has not started" in line


@pytest.mark.full
def test_a_process_that_hangs_before_it_can_beat(shards, run, monkeypatch):
    """It is killed, as it cannot end by itself."""
    stopped_at(monkeypatch, "1 import torch")
    code, output = finish(start(run_words(shards, run, *LIMITS), 2), 200)
    assert "rank 1 has not started" in verdict(run, output), output[-3000:]
    assert code in (watchdog.HUNG, 256 - signal.SIGKILL), output[-3000:]


@pytest.mark.full
def test_a_process_that_never_starts(shards, run, monkeypatch):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for key, value in {**variables, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(key, value)
    code, output = finish(start(run_words(shards, run, *LIMITS)), 100)
    assert code == watchdog.HUNG, output[-3000:]
    assert "for 1 minutes: rank 1 has not started (" in verdict(run, output)


MISSING = """
import sys, time
from contextlib import closing
from pathlib import Path
from trainer import distributed, heartbeat, watchdog
run, rank = Path(sys.argv[-1]), distributed.launched_rank()
with closing(watchdog.Watch(run, rank, 2, 4, 60)):
    distributed.initialise()
    heartbeat.settled()
    heartbeat.doing("forward", 3)
    if rank == 1:
        time.sleep(100)
    distributed.barrier()
"""


@pytest.mark.full
def test_a_collective_without_one_of_the_processes(run, tmp_path):
    run.mkdir()
    (tmp_path / "missing.py").write_text(MISSING)
    process = subprocess.Popen(
        ["torchrun", "--nproc_per_node=2", f"--master_port={free_port()}", str(tmp_path / "missing.py"), str(run)],
        cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    code, output = finish(process, 100)
    assert code, output[-3000:]
    assert f"error: the run stood still for 0.0667 minutes: rank 1 on {HOST} hangs in forward of step 3 " in output
