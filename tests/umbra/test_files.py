import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.damage import DAMAGES
from umbra.errors import UserError
from umbra.files import (
    DAY,
    TEMPORARY,
    atomic,
    atomic_folder,
    claim_folder,
    make_folder,
    read_json,
    read_json_as,
    read_json_lines,
    read_yaml,
    remove_partial,
    write_text,
)


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


def test_a_place_where_nothing_can_be_made_is_one_line_at_once(tmp_path):
    """/proc is a folder that even root may "write" to, as `os.access` has it."""
    for act in (claim_folder, make_folder):
        with pytest.raises(UserError, match=r"run=/proc/x/y: .*choose another run=DIR"):
            act("/proc/x/y", "run")
    with pytest.raises(UserError, match="is not a folder"):
        make_folder("/etc/passwd/x", "run")
    with pytest.raises(UserError, match=r"run=.*File name too long"):
        make_folder(tmp_path / ("x" * 300), "run")
    for path in ("/proc/f", "/etc/passwd/f", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"cannot write .*choose another place"):
            write_text(Path(path), "x")
    assert make_folder(tmp_path / "a" / "b", "run").is_dir()
    assert make_folder(tmp_path / "a" / "b", "run").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("read", [read_json, read_yaml, lambda path, fix: read_json_as(dict[str, int], path, fix)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_with_the_fix(read, damage, tmp_path):
    path = tmp_path / "f"
    path.write_text('{"a": 1}')
    assert read(path, "do it") == {"a": 1}
    DAMAGES[damage](path)
    if damage == "mapping":
        assert read(path, "do it") == {}
        return
    with pytest.raises(UserError, match=r"f (is damaged|cannot be read) \(.+\): do it$") as said:
        read(path, "do it")
    assert "\n" not in str(said.value)


def test_lines_that_a_crash_cut_off_are_skipped(tmp_path):
    path = tmp_path / "f"
    assert read_json_lines(path, dict[str, int]) == []
    path.write_bytes(b'{"a": 1}\n{"a": "x"}\n[1]\n\xff\n\n{"a": 2}\n{"a": 3')
    assert read_json_lines(path, dict[str, int]) == [{"a": 1}, {"a": 2}]


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    place = tmp_path / "model"
    with atomic_folder(place) as new:
        (new / "a").write_text("1")
        assert not place.exists()

    def cut():
        with atomic_folder(place) as new:
            (new / "a").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert (place / "a").read_text() == "1"
    with atomic_folder(place) as new:
        (new / "b").write_text("3")
    assert [p.name for p in place.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
