"""Processes without torch stand in for the ranks of a run; the real ones are in tests/end_to_end/test_hang.py."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.launch import ROOT
from trainer import heartbeat
from trainer.heartbeat import Beat, Seen

HOST = socket.gethostname()
RANK = """
import sys, time
from contextlib import closing
from pathlib import Path
from trainer import heartbeat
run, rank, size, place = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with closing(heartbeat.Watch(run, rank, size, 3, float(sys.argv[5]))):
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
        assert set(codes) == {heartbeat.HUNG}, (said, codes, lines)
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
    assert codes == [heartbeat.HUNG] * 2
    assert time.monotonic() - began > 6
    assert f"for 0.1 minutes: rank 1 on {HOST} hangs in data of step 7 " in lines[0]


def test_the_ranks_that_hang_are_those_without_a_sign_of_life_else_those_behind_that_do_not_wait():
    def beats(*places):
        return {n: Beat(n, "n1", "forward", 3, count, waits) for n, (count, waits) in enumerate(places)}

    assert Seen(beats((5, True), (4, False), (5, True))).hanging() == [1]
    assert Seen(beats((5, True), (4, False)), frozenset({0})).hanging() == [0]
    assert Seen(beats((5, True), (5, False), (5, True))).hanging() == [1]
    assert Seen(beats((5, True), (5, True))).hanging() == [0, 1]
    assert Seen({**beats((5, True), (4, True)), 2: None}, frozenset({2})).hanging() == [2]
    many = Seen(beats(*[(4, False)] * 6, (5, True)))
    assert many.line(10).count("hangs in forward of step 3") == heartbeat.SHOWN
    assert "; and 2 more" in many.line(10)


def test_what_may_take_long_is_asked_of_living_processes_alone():
    calm, long = Beat(0, "n1", patient=False), Beat(1, "n1", patient=True)
    assert Seen({0: calm, 1: long}).patient
    assert not Seen({0: calm, 1: long}, frozenset({1})).patient


def test_each_thing_that_begins_counts_and_all_is_patient_until_the_first_step_is_done(monkeypatch):
    monkeypatch.setattr(heartbeat, "_now", Beat(2, "n1"))
    monkeypatch.setattr(heartbeat, "_settled", False)
    heartbeat.doing("data", 1)
    with heartbeat.waiting():
        assert heartbeat._now == Beat(2, "n1", "data", 1, 1, waits=True, patient=True)
    heartbeat.settled()
    heartbeat.doing("forward")
    assert heartbeat._now == Beat(2, "n1", "forward", 1, 2, patient=False)
    heartbeat.doing("shards", patient=True)
    assert (heartbeat._now.count, heartbeat._now.patient, heartbeat._now.waits) == (3, True, False)


def test_only_processes_of_the_same_launch_are_found(monkeypatch):
    variables = {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12"}
    monkeypatch.setattr(heartbeat, "_variables", lambda name: variables)
    monkeypatch.setattr(heartbeat, "_stat", lambda name: ["S", str(os.getppid() if name == "77" else 1)])
    monkeypatch.setattr("os.listdir", lambda path: ["77", "78", "self"])
    assert heartbeat.siblings([1]) == [77]
    assert heartbeat.siblings([0]) == []
    monkeypatch.setattr(heartbeat, "_variables", lambda name: {**variables, "MASTER_PORT": name})
    assert heartbeat.siblings([1]) == []
