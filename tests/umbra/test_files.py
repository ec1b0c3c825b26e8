import os
import subprocess
import time

import pytest

from umbra.errors import UserError
from umbra.files import DAY, TEMPORARY, atomic, claim_folder, remove_partial, write_text


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a" / "f.txt"
    write_text(path, "old")

    def cut():
        with atomic(path) as temporary:
            assert TEMPORARY in temporary.name
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cut()
    assert path.read_text() == "old"
    write_text(path, "n\u00e9w\n")
    assert path.read_bytes() == b"n\xc3\xa9w\n"
    assert [p.name for p in path.parent.iterdir()] == ["f.txt"]


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    did, real = [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda f: did.append(os.readlink(f"/proc/self/fd/{f}")) or real[0](f))
    monkeypatch.setattr(os, "replace", lambda a, b: did.append("rename") or real[1](a, b))
    write_text(tmp_path / "f", "x")
    assert TEMPORARY in did[0]
    assert did[1:] == ["rename", str(tmp_path)]


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "f", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_one_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/a/b", "broken"):
        with pytest.raises(UserError, match=rf"run=.*/{name}: .* is not a folder"):
            claim_folder(tmp_path / name, "run")
    for name in ("", "new", "new/a/b"):
        claim_folder(tmp_path / name, "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "file"]


def test_a_folder_without_the_right_to_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write"):
        claim_folder(tmp_path / "new", "output")


def test_only_what_dead_writers_left_is_removed(tmp_path):
    host = os.uname().nodename
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = {f"a.tar{TEMPORARY}{host}-{dead.pid}": False, f"b.tar{TEMPORARY}{host}-{os.getpid()}": True}
    left |= {f"c.tar{TEMPORARY}elsewhere-1": True, f"d.tar{TEMPORARY}elsewhere-2": False, "e.tar": True}
    for name in left:
        (tmp_path / name).write_text("")
    old = time.time() - 2 * DAY
    os.utime(tmp_path / f"d.tar{TEMPORARY}elsewhere-2", (old, old))
    remove_partial(tmp_path)
    assert {name: (tmp_path / name).exists() for name in left} == left
