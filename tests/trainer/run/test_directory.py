"""A run directory belongs to one run: with file locks, without, after a kill, and never a folder of something else."""

import errno
import os
import subprocess
import sys
import time

import pytest

from tests.support.handmade import make_shards
from tests.support.pretrain_words import called, run_words
from trainer.run import directory
from umbra import lock as locking
from umbra.errors import UserError

WITHOUT = """
import errno, fcntl
def refuse(*words):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
"""
HOLD = """
import os, sys, time
from trainer.run.directory import held
with held(sys.argv[1], True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=[True, False], ids=["file locks", "claims"])
def locks(request, monkeypatch):
    """What a process must run before it uses locks."""
    if request.param:
        return ""

    def refuse(*words):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    return WITHOUT


@pytest.fixture
def holder(tmp_path, locks):
    """A process that holds the run directory."""
    command = [sys.executable, "-c", locks + HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_start_is_one_line_and_a_killed_run_blocks_nothing(holder, tmp_path, monkeypatch, capsys):
    data = make_shards(tmp_path / "data", {"train": ["SR"] * 16})
    words = run_words(data, tmp_path / "run", "steps=2")[1:]
    code, _, said = called(words, monkeypatch, capsys)
    assert code == 2
    assert said.count("\n") == 1
    assert f"in use by another run (process {holder.pid} on {os.uname().nodename})" in said
    assert "run=" in said
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"run.lock", "run.lock.claim"}
    with directory.held(tmp_path / "run", False):
        pass  # the other processes of a run rely on its first
    holder.kill()
    holder.wait(30)
    with directory.held(tmp_path / "run", True):
        assert (tmp_path / "run" / "run.lock").exists()


def test_the_directory_is_free_after_the_run(tmp_path, locks):
    for _ in range(2):
        with directory.held(tmp_path / "run", True):
            with pytest.raises(UserError, match="in use"), directory.held(tmp_path / "run", True):
                pass
    directory.check(tmp_path / "run")


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / "figures").mkdir()
    with subprocess.Popen(["true"]) as dead:
        dead.wait(30)
    host = os.uname().nodename
    left = [tmp_path / "run.json", tmp_path / "figures" / "curves.png"]
    for path in left:
        for process in (dead.pid, os.getpid()):
            path.with_name(f"{path.name}.partial-{host}-{process}").touch()
    with directory.held(tmp_path, True):
        found = {path.name for path in tmp_path.rglob("*.partial-*")}
    assert found == {f"{path.name}.partial-{host}-{os.getpid()}" for path in left}


def test_without_file_locks_a_run_elsewhere_is_seen_to_live_or_not(tmp_path, monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(locking, "STALE", 3.0)
    claim = tmp_path / "run.lock.claim"
    claim.write_text("elsewhere 77")
    beat = "import os, sys, time\nwhile True:\n    os.utime(sys.argv[1])\n    time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", beat, str(claim)]) as other:
        before = claim.stat().st_mtime_ns
        while claim.stat().st_mtime_ns == before:
            time.sleep(0.05)
        with pytest.raises(UserError, match="process 77 on elsewhere"), directory.held(tmp_path, True):
            pass
        other.kill()
    with directory.held(tmp_path, True):
        assert claim.read_text() == f"{os.uname().nodename} {os.getpid()}"
    assert not claim.exists()


@pytest.mark.parametrize("there", [["00001.hea", "00001.dat"], ["run.yaml"], ["shards/manifest.json"]])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(there, tmp_path, monkeypatch, capsys):
    data, run = make_shards(tmp_path / "data", {"train": ["SR"] * 16}), tmp_path / "run"
    for name in there:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    for more in ([], ["--dry-run"]):
        code, _, said = called([*run_words(data, run)[1:], *more], monkeypatch, capsys)
        assert code == 2
        assert "holds other files" in said
        assert "run=DIR" in said
        assert said.count("\n") == 1
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) == sorted(there)


@pytest.mark.parametrize(
    "there", [[], ["train.log"], ["run.json", "notes.txt"], ["checkpoints/step-1/x"], ["run.lock"]]
)
def test_a_run_and_an_empty_folder_with_logs_are_taken(there, tmp_path):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    directory.check(tmp_path)
