"""Builds on file systems without file locks: one plans, others wait for it, a dead one's claim is taken over."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.support.recordings import write_folder
from umbra import lock as locking
from umbra.errors import UserError
from umbra.schema import read_manifest

WITHOUT_LOCKS = """
import errno, fcntl, sys
def refuse(*words):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
from sharding.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "STALE", 1.0)


def test_headers_are_read_once_by_tasks_without_file_locks(tmp_path):
    write_folder(tmp_path / "in", 300)
    words = ["build", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "source.public=true", "tasks=3"]
    command = [sys.executable, "-c", WITHOUT_LOCKS, *words, "samples_per_shard=20"]
    tasks = [subprocess.Popen([*command, f"task={i}"], stderr=subprocess.PIPE, text=True) for i in range(3)]
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    assert sum("headers:" in text for text in said) == 1, said
    assert sum(s.samples for s in read_manifest(tmp_path / "out").shards) == 300
    assert not list((tmp_path / "out").rglob("*.claim"))


def test_one_at_a_time(tmp_path, no_locks):
    inside, most = [], []

    def work():
        for _ in range(5):
            with locking.lock(tmp_path / "x"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(most), max(most)) == (15, 1)


def test_a_claim_that_moves_is_waited_for_and_a_dead_one_taken_over(tmp_path, no_locks, monkeypatch):
    claim = tmp_path / "x.claim"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(60)
    claim.write_text(f"{os.uname().nodename} {ended.pid}")
    started = time.monotonic()
    with locking.lock(tmp_path / "x"):
        assert time.monotonic() < started + 0.9  # a dead process of this machine is known at once
        assert claim.read_text() == f"{os.uname().nodename} {os.getpid()}"
    claim.write_text("elsewhere 1")
    started = time.monotonic()
    with locking.lock(tmp_path / "x"):
        assert time.monotonic() > started + 0.9  # one elsewhere by its claim standing still
    claim.write_text("elsewhere 1")
    stop = threading.Event()
    beating = threading.Thread(target=locking._beat, args=(claim, stop))
    beating.start()
    monkeypatch.setattr(locking, "WAIT", 2.5)
    with pytest.raises(UserError, match="another process has held the lock"), locking.lock(tmp_path / "x"):
        pass
    stop.set()
    beating.join(10)
    assert claim.read_text() == "elsewhere 1"
