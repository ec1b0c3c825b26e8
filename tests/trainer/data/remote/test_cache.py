"""Remote shards, against a real HTTP server that misbehaves, and against commands."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.gopen import gopen_schemes

from sharding.writer import ShardWriter, metadata_bytes
from tests.support.misbehaving import Server
from tests.support.orders import changes
from trainer.data.order import Order
from trainer.data.remote import cache as module
from trainer.data.remote.board import Node, ShardError
from trainer.data.remote.cache import Cache, budget, open_cache
from trainer.data.remote.fetch import Download, FetchError, Limits, Remote, is_remote, without_secrets
from trainer.data.remote.needs import Need, lanes_of, needs, smallest, smallest_of_run
from trainer.data.remote.store import obtain, open_data_set, size_of
from trainer.data.shards import Shards
from umbra.errors import UserError
from umbra.schema import Geometry, Manifest, Shard, fingerprint, read_manifest

QUICK = Limits(stall=0.4, attempts=3, pause=0.01, longest=0.02, total=8, slowest=1e6)
COUNTS = (7, 0, 5, 9, 4, 8, 6, 9, 3, 9, *(5, 6, 7, 4) * 4)
GEOMETRY = Geometry(2, 40, 64)


def build(root: Path, counts=COUNTS, val=3) -> Path:
    """A data set of small shards, all samples different."""
    rng, shards = np.random.default_rng(0), []
    root.mkdir(parents=True)
    splits = [*[("train", n) for n in counts], ("val", val)]
    for ordinal, (split, count) in enumerate(splits):
        name = f"{split}-{ordinal:06d}.tar"
        with open(root / name, "wb") as file:
            writer = ShardWriter(file, GEOMETRY, ordinal)
            for _ in range(count):
                writer.add(rng.integers(-999, 999, (2, 40)).astype("<i2"), metadata_bytes({}, 64) or b"")
            digest = writer.close()
        shards.append(Shard(name, split, count, (root / name).stat().st_size, digest))
    table = {"shard": np.repeat(np.arange(len(splits)), [n for _, n in splits]).astype("i4")}
    pq.write_table(pa.table(table | {"patient": np.arange(len(table["shard"]))}), root / "samples.parquet")
    hashed = fingerprint(shards, GEOMETRY, 100.0, ["I", "II"], 1.0)
    words = (hashed, 100.0, ["I", "II"], 40, 1.0, 64, shards, [0.0] * 2, [1.0] * 2, True, "public")
    (root / "manifest.json").write_text(Manifest(*words).to_json())
    return root


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build(tmp_path_factory.mktemp("d") / "set")


@pytest.fixture
def server(root):
    with Server(root).serving() as it:
        yield it


def download(remote: Remote, shard: Shard) -> bytes:
    file = io.BytesIO()
    Download(remote, shard.name, file, shard.bytes, shard.sha256).run(threading.Event())
    return file.getvalue()


# --- which shards when


@st.composite
def cases(draw):
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    batch = lanes * draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(0, 20), min_size=1, max_size=14).filter(lambda c: sum(c) >= batch))
    words = draw(st.integers(0, 5)), batch, lanes, 1, draw(st.integers(1, 5))
    order = Order(tuple(counts), *words, draw(changes(counts, batch)))
    world = draw(st.sampled_from([w for w in (1, 2, 4, 8) if lanes % w == 0]))
    ranks = draw(st.lists(st.integers(0, world - 1), min_size=1, unique=True))
    start = draw(st.integers(0, 2 * order.steps_per_epoch))
    return order, world, ranks, start, start + draw(st.integers(1, 2 * order.steps_per_epoch))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_the_plan_names_the_shards_of_each_step_and_no_others(case):
    order, world, ranks, start, stop = case
    plan = list(needs(order, lanes_of(ranks, world, order.lanes), start, stop))
    assert [n.first for n in plan] == sorted(n.first for n in plan)
    ends = np.cumsum(order.counts)
    for step in range(start, stop):
        active = [n.shard for n in plan if n.first <= step <= n.last]
        assert len(active) == len(set(active))
        stood = {int(s) for r in ranks for s in order.shards(step, 1, r, world)}
        assert set(active) >= stood
        for rank in ranks:
            assert set(np.searchsorted(ends, order.step(step, rank, world).ravel(), "right")) <= set(active)
    for need in plan:  # it is read at its first and at its last step
        for step in (need.first, need.last):
            assert need.shard in {int(s) for r in ranks for s in order.shards(step, 1, r, world)}
    often = Counter((n.shard, order.epoch(n.first).number) for n in plan)
    assert max(often.values(), default=0) <= 2


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_smallest_size_is_what_the_fullest_step_needs(case):
    order, world, ranks, start, stop = case
    lanes, sizes = lanes_of(ranks, world, order.lanes), [100 + i for i in range(len(order.counts))]
    plan = list(needs(order, lanes, start, stop))
    fullest = max(sum(sizes[n.shard] for n in plan if n.first <= s <= n.last) for s in range(start, stop))
    assert smallest(plan, sizes) == fullest == smallest_of_run(order, lanes, start, stop, sizes)


def test_a_shard_cut_by_a_lane_border_comes_twice_and_no_other():
    order = Order((8, 8, 8), 0, 4, 2, block=1)  # two lanes of 12 samples: the middle shard belongs to both
    plan = list(needs(order, [0, 1], 0, order.steps_per_epoch))
    line = [int(shard) for [shard] in order.blocks(order.epoch(0))[1]]
    assert Counter(n.shard for n in plan) == {line[0]: 1, line[1]: 2, line[2]: 1}
    assert sorted((n.first, n.last) for n in plan if n.shard == line[1]) == [(0, 1), (4, 5)]


def test_lanes_of_ranks():
    assert lanes_of([3, 0], 4, 8) == [0, 1, 6, 7]


# --- how a file comes over


def test_where_a_file_is_and_what_is_shown_of_it():
    one = Remote("https://me:secret@host:8/a/set/?token=t0p")
    assert one.where("x.tar") == "https://me:secret@host:8/a/set/x.tar?token=t0p"
    assert one.shown("x.tar") == "https://host:8/a/set/x.tar"
    two = Remote("pipe:aws --key=secret s3 cp s3://b/{} -")
    assert two.where("x.tar") == "pipe:aws --key=secret s3 cp s3://b/x.tar -"
    assert two.shown("x.tar") == "pipe:aws ... x.tar"
    assert Remote("pipe:cat /d/").where("x.tar") == "pipe:cat /d/x.tar"
    assert [is_remote(p) for p in ("s3://b/d", "pipe:cat d", "http://h/d", "/a/b", "d:e")] == [True] * 3 + [False] * 2
    shown = [without_secrets(p) for p in ("https://me:s@host:8/a?token=t#x", "s3://b/d", "/a/b?c", "pipe:cat d?e")]
    assert shown == ["https://host:8/a", "s3://b/d", "/a/b?c", "pipe:cat d?e"]
    for bad in ("http://", "http://[x/y", "https:///d?token=t0p"):
        with pytest.raises(UserError, match=r"is not the URL of a folder") as error:
            Remote(bad)
        assert "t0p" not in str(error.value)


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["500", "503"], [False, False, False]),
        (["429"], [False, False]),
        (["cut", "cut", "cut", "cut", "cut"], [False, True, True, True, True, True]),
        (["stall"], [False, True]),
        (["cut", "whole"], [False, True]),
        (["cut", "elsewhere"], [False, True, False]),
        (["cut", "416"], [False, True, False]),
        (["bytes", "bytes"], [False, False, False]),
        (["long"], [False, False]),
        (["short"], [False, True]),
        (["nolength"], [False]),
    ],
    ids=lambda x: " ".join(map(str, x)),
)
def test_faults_that_pass_are_overcome(server, root, faults, ranges):
    shard = read_manifest(root).shards[3]
    server.faults[shard.name] = [*faults, ""]
    assert download(Remote(server.url, QUICK), shard) == (root / shard.name).read_bytes()
    assert [asked is not None for _, asked in server.seen] == ranges


def test_a_cut_is_resumed_at_the_very_byte(server, root):
    shard = read_manifest(root).shards[3]
    server.faults[shard.name] = ["cut", ""]
    download(Remote(server.url, QUICK), shard)
    assert server.seen[1] == (shard.name, f"bytes={shard.bytes // 2}-")


@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        ("404", "HTTP 404", 1),
        ("403", "HTTP 403", 1),
        ("500", "HTTP 500", 3),
        ("bytes", "sha256", 3),
        ("long", "longer than the", 3),
        ("short", "ended after", None),
        ("stall", "stalled", None),
    ],
)
def test_faults_that_stay_end_with_one_line(server, root, fault, words, tries):
    shard = read_manifest(root).shards[3]
    server.faults[shard.name] = [fault + "!"]
    url = server.url.replace("//", "//me:secret@", 1) + "?token=t0p"
    with pytest.raises(FetchError, match=words) as error:
        download(Remote(url, replace(QUICK, total=1)), shard)
    text = str(error.value)
    assert f"/set/{shard.name}: " in text
    assert "secret" not in text
    assert "t0p" not in text
    assert "\n" not in text
    assert tries in (None, len(server.seen))


def test_a_name_and_password_in_the_url_are_sent(server, root):
    download(Remote(server.url.replace("//", "//me:pass%20word@", 1), QUICK), read_manifest(root).shards[3])
    assert server.headers_of["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"


def test_drops_of_bytes_do_not_hold_a_run_for_ever(server, root):
    shard = read_manifest(root).shards[3]
    server.faults[shard.name] = ["drip!"]
    before = time.monotonic()
    with pytest.raises(FetchError, match="too slow"):
        download(Remote(server.url, replace(QUICK, total=0.5)), shard)
    assert time.monotonic() - before < 3


def test_no_server_at_all(root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/set"
    with pytest.raises(FetchError, match=r"ConnectionRefused.*3 tries"):
        download(Remote(url, QUICK), read_manifest(root).shards[3])


def test_commands_and_other_openers(root, tmp_path, monkeypatch):
    shard = read_manifest(root).shards[3]
    whole = (root / shard.name).read_bytes()
    assert {"pipe", "gs"} <= set(gopen_schemes)  # imported before the time of a download runs
    assert download(Remote(f"pipe:cat {root}", QUICK), shard) == whole
    assert download(Remote(f"pipe:cat {root}/{{}} | cat", QUICK), shard) == whole
    assert download(Remote(f"file://{root}", QUICK), shard) == whole
    for tool, words in (("aws", '[ "$1 $2 $4" = "s3 cp -" ] && cat'), ("gsutil", '[ "$1" = cat ] && cat')):
        (tmp_path / tool).write_text(f'#!/bin/sh\n{words} "{root}/$(basename "${3 if tool == "aws" else 2}")"\n')
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert download(Remote("s3://bucket/set", QUICK), shard) == whole
    assert download(Remote("gs://bucket/set", QUICK), shard) == whole


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pipe:head -c 5000 {root}/{{}}", "ended after 5000 of"),
        ("pipe:cat {root}/{{}}; exit 3", "exit code 3"),
        ("pipe:no-such-command-at-all {{}}", "is not installed"),
        ("pipe:sleep 20; echo {{}}", "command stalled"),
        ("gopher://host/set", "webdataset cannot open gopher"),
        ("ais://host/set", "ais does not exist on this machine"),
    ],
)
def test_commands_that_fail_end_with_one_line(root, url, words, capfd):
    remote, before = Remote(url.format(root=root), replace(QUICK, total=1)), time.monotonic()
    with pytest.raises(FetchError, match=words):
        download(remote, read_manifest(root).shards[3])
    assert time.monotonic() - before < 5


# --- the folder


def test_manifest_and_samples_come_first(server, root, tmp_path):
    folder = open_data_set(Remote(server.url, QUICK), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "samples.parquet"]
    assert (folder / "manifest.json").read_bytes() == (root / "manifest.json").read_bytes()
    assert Shards(folder, "train", later=True).count == sum(COUNTS)
    assert open_data_set(Remote(server.url, QUICK), tmp_path) == folder
    assert server.times() == {"manifest.json": 2, "samples.parquet": 1}


def spoil(root: Path, how: str) -> None:
    content = json.loads((root / "manifest.json").read_text())
    if how == "fingerprint":
        content["shards"][0]["samples"] += 1
    elif how == "schema":
        content["schema"] = 99
    elif how == "name":
        content["shards"][0]["name"] = "../../evil.tar"
        shards = [Shard(**s) for s in content["shards"]]
        content["fingerprint"] = fingerprint(shards, GEOMETRY, 100.0, ["I", "II"], 1.0)
    elif how == "bytes":
        content["shards"][0]["bytes"] -= 512
    (root / "manifest.json").write_text(json.dumps(content))
    if how == "no manifest":
        (root / "manifest.json").unlink()
    elif how == "cut manifest":
        (root / "manifest.json").write_bytes(b'{"schema": 1, \xff')
    elif how == "rows":
        pq.write_table(pq.read_table(root / "samples.parquet").slice(1), root / "samples.parquet")
    elif how == "parquet":
        (root / "samples.parquet").write_bytes((root / "samples.parquet").read_bytes()[:-9])
    elif how == "no samples":
        (root / "samples.parquet").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fingerprint", r"manifest.json does not match its own fingerprint"),
        ("schema", r"manifest.json has schema 99"),
        ("name", r"evil.tar', which is not a valid name of a tar"),
        ("bytes", r"train-000000.tar has \d+ bytes, but 7 samples take"),
        ("no manifest", r"manifest.json: HTTP 404.*finished data set"),
        ("cut manifest", r"manifest.json is damaged"),
        ("rows", r"samples.parquet does not match the rows of its manifest"),
        ("parquet", r"samples.parquet is damaged"),
        ("no samples", r"samples.parquet: HTTP 404"),
    ],
)
def test_data_sets_that_are_not_whole_are_refused(server, root, tmp_path, how, words):
    server.root = shutil.copytree(root, tmp_path / "spoilt")
    spoil(server.root, how)
    with pytest.raises(UserError, match=words) as error:
        open_data_set(Remote(server.url, QUICK), tmp_path / "cache")
    assert server.url in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not list((tmp_path / "cache").rglob("samples.parquet"))


def test_a_size_that_cannot_work_is_refused_with_the_smallest_that_does(tmp_path):
    with pytest.raises(UserError, match=r"data.cache_gb=0.002 is too small: 0.003 is the minimum that works"):
        budget(0.002, 2_000_001, 9_000_000, tmp_path)
    assert budget(0.003, 2_000_001, 9_000_000, tmp_path) == 3_000_000
    assert budget(0, 2_000_001, 9_000_000, tmp_path) == 4_000_002
    assert budget(5, 2_000_001, 9_000_000, tmp_path) == 9_000_000
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"GB free, not .*4 is the minimum"):
        budget(free / 1e9 + 50, 4 * 10**9, free + 60 * 10**9, tmp_path)


# --- the cache


ORDER = Order(COUNTS, 1, 8, 4, block=1)


def run(cache: Cache, folder: Path, order: Order, node: Node, steps, lags: list, pause=0.0) -> list[np.ndarray]:
    """What a process of a run does: waits, gathers, says so. Notes the bytes of tars in the folder at each step."""
    got, shards = [], Shards(folder, "train", later=True)
    for step in steps:
        cache.wait(step)
        lags.append(sum(map(size_of, folder.glob("*.tar"))))
        indices = order.step(step, node.rank, node.world).ravel()
        got.append(shards.gather(indices, np.empty((len(indices), 2, 40), "<i2")))
        time.sleep(pause)
        cache.done(step)
    return got


def expected(root: Path, order: Order, node: Node, steps) -> list[np.ndarray]:
    shards = Shards(root, "train")
    indices = [order.step(s, node.rank, node.world).ravel() for s in steps]
    return [shards.gather(i, np.empty((len(i), 2, 40), "<i2")) for i in indices]


def test_a_run_in_the_smallest_cache_that_works(server, root, tmp_path):
    order, steps = ORDER, range(5, 4 * ORDER.steps_per_epoch)
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    manifest = read_manifest(folder)
    val = manifest.of_split("val")
    sizes = [s.bytes for s in manifest.of_split("train")]
    least = smallest_of_run(order, range(4), steps.start, steps.stop, sizes) + val[0].bytes
    plan = needs(order, range(4), steps.start, steps.stop)
    used = []
    pinned = [len(manifest.shards) - 1]
    with Cache(remote, folder, manifest.shards, plan, least, Node(), steps.start, steps.stop, "t", pinned) as cache:
        got = run(cache, folder, order, Node(), steps, used)
        assert (folder / val[0].name).is_file()
        assert cache.ahead == 0
    assert all(map(np.array_equal, got, expected(root, order, Node(), steps)))
    assert max(used) <= least < sum(sizes) / 2
    most = Counter(n.shard for n in needs(order, range(4), steps.start, steps.stop))
    times = server.times()
    assert all(times[manifest.shards[s].name] <= n for s, n in most.items())
    assert times[val[0].name] == 1
    assert times.total() > 2 * len(sizes)  # it did have to remove some and fetch them again
    assert not [t for t in threading.enumerate() if t.name == "fetch"]


def test_with_room_for_all_each_shard_comes_once_in_the_run(server, root, tmp_path):
    remote = Remote(server.url, QUICK)
    folder, stop = open_data_set(remote, tmp_path), 3 * ORDER.steps_per_epoch
    for _ in range(2):  # and not again in the next run
        with open_cache(remote, folder, read_manifest(folder), ORDER, Node(), 0, stop, 1.0, "t") as cache:
            run(cache, folder, ORDER, Node(), range(stop), [])
    tars = {s.name: 1 for s in read_manifest(root).of_split("train") if s.samples}
    assert {k: v for k, v in server.times().items() if k.endswith(".tar")} == tars


def process(url, cache_dir, rank, stop, token, results):
    node = Node(rank, (0, 1), 2)
    remote = Remote(url, QUICK)
    folder = open_data_set(remote, cache_dir)
    manifest = read_manifest(folder)
    sizes = [s.bytes for s in manifest.of_split("train")]
    least = smallest_of_run(ORDER, range(4), 0, stop, sizes)
    plan = needs(ORDER, lanes_of(node.ranks, 2, 4), 0, stop)
    with Cache(remote, folder, manifest.shards, plan, least, node, 0, stop, token) as cache:
        used = []
        got = run(cache, folder, ORDER, node, range(stop), used, pause=0.004 * rank)
        results.put((rank, max(used) <= least, [g.tobytes() for g in got]))


@pytest.fixture
def spawn():
    context, started = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["trainer.data.remote.cache", "trainer.data.shards"])

    def start(target, *arguments):
        it = context.Process(target=target, args=arguments, daemon=True)
        it.start()
        started.append(it)
        return it

    yield context, start
    for it in started:
        it.kill()
        it.join(5)


def test_two_processes_of_a_machine_share_what_is_fetched(server, root, tmp_path, spawn):
    context, start = spawn
    results, stop = context.Queue(), 2 * ORDER.steps_per_epoch
    for rank in (1, 0):
        start(process, server.url, tmp_path, rank, stop, "t", results)
    for _ in range(2):
        rank, bounded, got = results.get(timeout=120)
        assert got == [e.tobytes() for e in expected(root, ORDER, Node(rank, (0, 1), 2), range(stop))]
        assert bounded
    most = Counter(read_manifest(root).shards[n.shard].name for n in needs(ORDER, range(4), 0, stop))
    times = server.times()
    assert times.pop("manifest.json") == 2
    assert times.pop("samples.parquet") == 1
    assert set(times) == set(most)
    assert all(times[name] <= most[name] for name in most)


def test_a_process_whose_leader_was_killed_does_not_wait_for_ever(server, tmp_path, spawn):
    context, start = spawn
    results, stop = context.Queue(), 2 * ORDER.steps_per_epoch
    leader = start(process, server.url, tmp_path, 0, stop, "t", results)
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    with Cache(remote, folder, read_manifest(folder).shards, (), 0, Node(1, (0, 1), 2), 0, stop, "t") as cache:
        cache.wait(0)
        os.kill(leader.pid, signal.SIGKILL)
        with pytest.raises(FetchError, match="has ended"):
            cache.wait(stop - 1)


def test_a_shard_that_stays_bad_is_named_when_the_steps_before_it_are_done(server, root, tmp_path):
    remote = Remote(server.url, QUICK)
    folder, stop = open_data_set(remote, tmp_path), 2 * ORDER.steps_per_epoch
    plan = list(needs(ORDER, range(4), 0, stop))
    bad = next(n for n in plan if n.first >= 2)
    name = read_manifest(root).shards[bad.shard].name
    server.faults[name] = ["bytes!"]
    with open_cache(remote, folder, read_manifest(folder), ORDER, Node(0, (0, 1), 2), 0, stop, 1.0, "t") as cache:
        other = Cache(remote, folder, read_manifest(folder).shards, (), 0, Node(1, (0, 1), 2), 0, stop, "t")
        for step in range(bad.first):
            cache.wait(step)
            other.wait(step)
        assert cache.failure_by(bad.first - 1) is None
        for one in (cache, other):
            error = one.failure_by(bad.first)
            assert (error.shard, error.step) == (name, bad.first)
            assert f"shard {name} cannot be fetched: {server.url}/{name}: " in str(error)
            assert f"data.exclude=[{name}]" in str(error)
            assert "\n" not in str(error)
            assert one.failure.shard == name  # known without asking for the step
            with pytest.raises(ShardError, match=name):
                one.wait(bad.first)
        other.close()
    assert not list(folder.glob("*.part"))


def test_a_run_that_is_asked_to_stop_waits_for_no_shard(server, root, tmp_path):
    folder = open_data_set(Remote(server.url, QUICK), tmp_path)
    shards = read_manifest(folder).shards
    server.faults[shards[3].name] = ["stall!"]
    slow = Remote(server.url, replace(QUICK, stall=4))
    with Cache(slow, folder, shards, [Need(3, 4, 5)], 10**9, Node(), 0, 6, "t") as cache:
        before = time.monotonic()
        assert cache.failure_by(3) is None
        assert cache.failure_by(4, lambda: True) is None
        assert time.monotonic() - before < 3
        server.released.set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_line(server, root, tmp_path, monkeypatch, code):
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)

    def full(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    shards = read_manifest(folder).shards
    with Cache(remote, folder, shards, [Need(3, 4, 5)], 10**9, Node(), 0, 6, "t") as cache:
        with pytest.raises(ShardError, match=rf"no space left for {shards[3].name} in data.cache=.*choose another"):
            cache.wait(4)
    assert not list(folder.glob("train-*"))


def test_a_fault_of_the_program_reaches_who_waits(server, tmp_path, monkeypatch):
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    monkeypatch.setattr(module, "obtain", lambda *a: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda *a: None)
    with Cache(remote, folder, read_manifest(folder).shards, [Need(3, 0, 5)], 10**9, Node(), 0, 6, "t") as cache:
        with pytest.raises(ShardError, match="ZeroDivisionError"):
            cache.wait(0)


def test_of_what_no_step_needs_now_that_goes_which_is_needed_last(server, tmp_path):
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    shards = read_manifest(folder).shards
    a, b, c = (i for i, s in enumerate(shards) if s.samples == 9)
    for soon, late in ((a, b), (b, a)):
        plan = [Need(a, 0, 1), Need(b, 0, 1), Need(c, 2, 2), Need(soon, 3, 3), Need(late, 4, 4)]
        with Cache(remote, folder, shards, plan, 2 * shards[a].bytes, Node(), 0, 5, "t") as cache:
            for step in range(4):
                cache.wait(step)
                cache.done(step)
            assert cache.counts["hits"] >= 1
            assert server.times()[shards[soon].name] == 1
        for path in folder.glob("*.tar"):
            path.unlink()
        server.seen.clear()


def test_a_pinned_shard_that_is_trained_on_too_stays(server, tmp_path):
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    shards = read_manifest(folder).shards
    a, b, c = (i for i, s in enumerate(shards) if s.samples == 9)
    plan = [Need(a, 0, 0), Need(b, 1, 1), Need(c, 2, 2)]
    with Cache(remote, folder, shards, plan, 2 * shards[a].bytes, Node(), 0, 4, "t", pinned=[a]) as cache:
        for step in range(4):
            cache.wait(step)
            assert (folder / shards[a].name).is_file()
            cache.done(step)
    assert server.times()[shards[a].name] == 1


def test_two_runs_may_share_a_folder(server, root, tmp_path):
    """The second finds what the first has, and does not remove what the first still needs."""
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    shards = read_manifest(folder).shards
    a, b, c = (i for i, s in enumerate(shards) if s.samples == 9)
    small = 2 * shards[a].bytes
    with Cache(remote, folder, shards, [Need(a, 0, 9)], small, Node(), 0, 10, "one") as one:
        one.wait(9)
        plan = [Need(a, 0, 0), Need(b, 0, 1), Need(c, 2, 3)]
        with Cache(remote, folder, shards, plan, small, Node(), 0, 4, "two") as two:
            for step in range(4):
                two.wait(step)
                two.done(step)
            assert (two.counts["hits"], two.counts["fetched"]) == (1, 2)
        assert (folder / shards[a].name).is_file()
        assert (folder / "board-one").is_file()
    d = next(i for i, s in enumerate(shards) if s.samples == 8)
    with Cache(remote, folder, shards, [Need(d, 0, 1)], shards[d].bytes, Node(), 0, 2, "three") as three:
        three.wait(1)
    assert sorted(p.name for p in folder.glob("[tb]*")) == ["board-three", shards[d].name]


def test_processes_that_ask_for_one_shard_at_once_fetch_it_once(server, root, tmp_path):
    shard = read_manifest(root).shards[3]
    fetched = []
    threads = [
        threading.Thread(
            target=lambda: fetched.append(obtain(Remote(server.url, QUICK), shard, tmp_path, threading.Event()))
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(fetched) == [False] * 5 + [True]
    assert len(server.seen) == 1
    assert hashlib.sha256((tmp_path / shard.name).read_bytes()).hexdigest() == shard.sha256
    assert os.listdir(tmp_path) == [shard.name]


def test_a_shard_of_another_size_and_old_parts_are_not_kept(server, root, tmp_path):
    remote = Remote(server.url, QUICK)
    folder = open_data_set(remote, tmp_path)
    shards = read_manifest(folder).shards
    (folder / shards[3].name).write_bytes(b"cut")
    (folder / "train-000004.tar.part").write_bytes(b"left by a kill")
    with Cache(remote, folder, shards, [Need(3, 0, 5)], 10**9, Node(), 0, 6, "t") as cache:
        cache.wait(5)
    assert (folder / shards[3].name).read_bytes() == (root / shards[3].name).read_bytes()
    assert not list(folder.glob("*.part"))
