"""Processes without torch stand in for the ranks of a run; the real ones are in tests/end_to_end/test_hang.py."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.launch import ROOT
from trainer import watchdog

HOST = socket.gethostname()
RANK = """
import sys, time
from contextlib import closing
from pathlib import Path
from trainer import heartbeat, watchdog
run, rank, size, place = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with closing(watchdog.Watch(run, rank, size, 3, float(sys.argv[5]))):
    heartbeat.doing("start-up")
    heartbeat.settled()
    if place == "goes on":
        for step in range(1, 60):
            heartbeat.doing("data", step)
            time.sleep(0.1)
        sys.exit(0)
    heartbeat.doing("data", 7, patient=place == "shards")
    if place in ("data", "shards"):
        time.sleep(60)
    heartbeat.doing("forward")
    with heartbeat.waiting():
        time.sleep(60)
"""


class Ranks:
    """Processes of one launch, `places[n]` being where rank n stays."""

    def __init__(self, run, places, size=None, patient=3.0):
        run.mkdir()
        self.run, self.processes = run, []
        for rank, place in enumerate(places):
            words = [run, rank, size or len(places), place, patient]
            variables = {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(run)}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", RANK, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=ROOT,
                    env={**os.environ, **variables},
                )
            )  # fmt: skip

    def beating(self):
        end = time.monotonic() + 30
        while not all((self.run / "heartbeat" / f"rank-{rank}").exists() for rank in range(len(self.processes))):
            assert time.monotonic() < end
            time.sleep(0.02)

    def ended(self):
        """(exit codes, the lines that were printed)"""
        said = [process.communicate(timeout=60)[1] for process in self.processes]
        return [process.returncode for process in self.processes], "".join(said).splitlines()


def test_all_processes_end_and_one_line_names_the_one_that_hangs(tmp_path):
    behind = Ranks(tmp_path / "behind", ["forward", "data", "forward"])
    stopped = Ranks(tmp_path / "stopped", ["forward", "forward"])
    absent = Ranks(tmp_path / "absent", ["forward"], size=2)
    alike = Ranks(tmp_path / "alike", ["forward", "forward"])
    goes_on = Ranks(tmp_path / "on", ["goes on", "goes on"])
    stopped.beating()
    stopped.processes[1].send_signal(signal.SIGSTOP)
    cases = [
        (behind, f"rank 1 on {HOST} hangs in data of step 7 "),
        (stopped, f"rank 1 on {HOST} gives no sign of life (last seen in "),
        (absent, "rank 1 has not started "),
        (alike, "all 2 processes hang in forward of step 7: network or file system? "),
    ]
    for ranks, said in cases:
        codes, lines = ranks.ended()
        assert set(codes) == {watchdog.HUNG}, (said, codes, lines)
        assert len(lines) == 1, lines
        assert f"error: the run stood still for 0.05 minutes: {said}" in lines[0]
        verdict = (ranks.run / "hang.txt").read_text()
        assert verdict.startswith(lines[0] + "\n")
        assert "rank 0     " in verdict
        assert '"<string>", line ' in (ranks.run / "heartbeat" / "rank-0.trace").read_text()
    assert goes_on.ended() == ([0, 0], [])
    assert list(goes_on.run.iterdir()) == []


@pytest.mark.full
def test_the_limit_is_longer_while_one_waits_for_shards_and_stops_while_all_are_stopped(tmp_path):
    began = time.monotonic()
    shards = Ranks(tmp_path / "shards", ["forward", "shards"], patient=6)
    goes_on = Ranks(tmp_path / "on", ["goes on", "goes on"])
    goes_on.beating()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in goes_on.processes:
            process.send_signal(number)
        time.sleep(4)
    assert goes_on.ended() == ([0, 0], [])
    codes, lines = shards.ended()
    assert codes == [watchdog.HUNG] * 2
    assert time.monotonic() - began > 6
    assert f"for 0.1 minutes: rank 1 on {HOST} hangs in data of step 7 " in lines[0]


def test_only_processes_of_the_same_launch_are_found(monkeypatch):
    variables = {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12"}
    monkeypatch.setattr(watchdog, "_variables", lambda name: variables)
    monkeypatch.setattr(watchdog, "_stat", lambda name: ["S", str(os.getppid() if name == "77" else 1)])
    monkeypatch.setattr("os.listdir", lambda path: ["77", "78", "self"])
    assert watchdog.siblings([1]) == [77]
    assert watchdog.siblings([0]) == []
    monkeypatch.setattr(watchdog, "_variables", lambda name: {**variables, "MASTER_PORT": name})
    assert watchdog.siblings([1]) == []
