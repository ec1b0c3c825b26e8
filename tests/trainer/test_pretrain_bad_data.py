"""Data that cannot be trained on: one line each and exit code 2, before the first step, from a disk and over HTTP."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.handmade import make_shards
from tests.support.misbehaving import Server
from tests.support.pretrain_words import SMALL, called


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shards"
    return make_shards(root, {"train": ["SR", "AFIB"] * 16, "val": ["SR"] * 4}, shards_of_train=4)


@pytest.fixture
def data(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def manifest(root: Path, **changes) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SHARDS = [
    (lambda p: os.truncate(p, 5000), "has 5000 bytes, its manifest says"),
    (lambda p: p.write_bytes(os.urandom(p.stat().st_size)), "is not part of this data set"),
    (lambda p: shutil.copy(p.with_name("train-000001.tar"), p), "hold the same samples: one has a wrong name"),
    (lambda p: p.unlink(), "is missing"),
]
MANIFESTS = [
    (lambda root: manifest(root, schema=7), "has schema 7, this version reads 1: build the data set again"),
    (lambda root: manifest(root, fingerprint="0" * 16), "its own fingerprint"),
    (lambda root: manifest(root, rate=50.0), "its own fingerprint"),
    (lambda root: (root / "manifest.json").write_text('{"schema": 1,'), "manifest.json is damaged"),
    (lambda root: (root / "manifest.json").unlink(), "finished data set"),
]


def refused(words, run, monkeypatch, capsys) -> str:
    monkeypatch.setattr("trainer.distributed.initialise", lambda: pytest.fail("the mistake was not seen"))
    given = ["configs/pretrain/none.yaml", f"run={run}", *SMALL, *words]
    code, output, error = called(given, monkeypatch, capsys)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert not run.exists()
    return error


@pytest.mark.parametrize(("damage", "words"), SHARDS, ids=["truncated", "overwritten", "foreign", "missing"])
def test_a_shard_on_disk(damage, words, data, tmp_path, monkeypatch, capsys):
    damage(data / "train-000002.tar")
    error = refused([f"data.path={data}"], tmp_path / "run", monkeypatch, capsys)
    assert str(data / "train-000002.tar") in error
    assert words in error


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "http"])
@pytest.mark.parametrize(("damage", "words"), MANIFESTS, ids=["version", "fingerprint", "rate", "cut", "missing"])
def test_a_manifest(damage, words, remote, data, tmp_path, monkeypatch, capsys):
    damage(data)
    with Server(data).serving() as server:
        place = [f"data.path={server.url}", f"data.cache={tmp_path / 'cache'}"] if remote else [f"data.path={data}"]
        error = refused(place, tmp_path / "run", monkeypatch, capsys)
    assert words in error
    assert (server.url if remote else str(data)) in error


def test_a_remote_data_set_needs_a_cache_that_can_be_written(data, tmp_path, monkeypatch, capsys):
    with Server(data).serving() as server:
        path = f"data.path={server.url}"
        error = refused([path], tmp_path / "run", monkeypatch, capsys)
        assert "set data.cache=FOLDER, on a disk of each machine" in error
        error = refused([path, "data.cache=README.md/x"], tmp_path / "run", monkeypatch, capsys)
        assert "README.md is not a folder; choose another data.cache=DIR" in error
        assert not server.seen


def test_a_dry_run_tells_the_least_room_that_works(data, tmp_path, monkeypatch, capsys):
    with Server(data).serving() as server:
        words = [f"data.path={server.url}", f"data.cache={tmp_path / 'cache'}", f"run={tmp_path / 'run'}", *SMALL]
        code, output, error = called(["configs/pretrain/none.yaml", *words, "--dry-run"], monkeypatch, capsys)
    assert (code, error) == (0, "")
    size = sum(path.stat().st_size for path in data.glob("*.tar")) / 1e9
    assert f"# data.cache on one machine: {size:.3f} GB for all shards, at least {size:.3f} GB" in output
    assert not list((tmp_path / "cache").rglob("*.tar"))
