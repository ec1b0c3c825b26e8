"""Whole runs under the real launcher whose own records prove what they trained on: through kills, other world sizes,
shards that cannot be had, and servers that misbehave."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.handmade import make_shards
from tests.support.launch import ROOT, environment, free_port, launch, start
from tests.support.misbehaving import Server
from tests.support.pretrain_words import losses, run_words
from trainer.data.audit import judge
from trainer.data.order import Order
from trainer.data.remote.needs import needs, smallest_of_run
from trainer.observe.metrics import read_metrics
from umbra.schema import read_manifest

LONG = 500  # seconds for a start of a run on a busy machine


def pretrain(data, run, *more, method="adversarial"):
    return run_words(data, run, "data.lanes=4", "data.block_shards=2", "data.audit=true", *more, method=method)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """12 training shards of 16 samples and one of 2: 12 steps an epoch, 2 samples left over."""
    root = tmp_path_factory.mktemp("data") / "shards"
    return make_shards(root, {"val": ["SR"] * 8, "train": ["SR", "STACH"] * 97}, shards_of_train=12)


def order_of(shards: Path) -> Order:
    return Order(tuple(s.samples for s in read_manifest(shards).of_split("train")), 0, 16, 4, 1, 2)


def killed_at(words: list[str], processes: int, run: Path, step: int) -> None:
    """Starts a run and kills all its processes once it has logged `step`."""
    process, end = start(words, processes), time.monotonic() + LONG
    log = run / "metrics.jsonl"
    while not (log.is_file() and (rows := read_metrics(log)) and rows[-1]["step"] >= step):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_each_epoch_is_complete_over_worlds_of_1_2_4_and_1_with_kills_between(shards, tmp_path):
    run = tmp_path / "run"
    words = pretrain(shards, run, "steps=38", "checkpoint.every=4")
    for processes, step in ((1, 9), (2, 18), (4, 27)):
        killed_at(words, processes, run, step)
    code, output = launch(words, 1, LONG)
    assert code == 0, output[-3000:]
    verdict = judge(run)
    assert verdict.problems == []
    assert [(e.number, e.first, e.last, e.state, e.seen) for e in verdict.epochs] == [
        *((n, 12 * n, 12 * n + 11, "complete", 192) for n in range(3)),
        (3, 36, 37, "unfinished", 32),
    ]
    assert verdict.struck > 0
    assert len({tuple(e.remainder) for e in verdict.epochs[:3]}) > 1
    worlds = {json.loads(path.read_bytes().partition(b"\n")[0])["world"] for path in (run / "audit").glob("*.bin")}
    assert worlds == {1, 2, 4}
    code, output = launch(["-m", "trainer.data.audit", str(run)])
    assert code == 0, output
    assert "proven: 3 complete epochs, no sample twice in any epoch, none from a held-out split" in output


def test_a_bad_shard_stops_a_run_with_a_checkpoint_and_its_records(shards, tmp_path):
    run, names = tmp_path / "run", [s.name for s in read_manifest(shards).of_split("train")]
    bad = next(need for need in needs(order_of(shards), range(4), 0, 12) if need.first >= 3)
    with Server(shards).serving() as server:
        server.faults[names[bad.shard]] = ["404!"]
        words = pretrain(server.url, run, f"data.cache={tmp_path / 'cache'}", "steps=12")
        code, output = launch(words)
    assert (code, output.count("error: ")) == (2, 1), output[-3000:]
    assert f"error: shard {names[bad.shard]} cannot be fetched: {server.url}/{names[bad.shard]}: HTTP 404" in output
    assert f"with a checkpoint of step {bad.first}\n" in output
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{bad.first}"]
    verdict = judge(run)
    assert (verdict.problems, verdict.epochs[0].seen) == ([], 16 * bad.first)
    each_once = sum(s.bytes for s in read_manifest(shards).shards if s.name != names[bad.shard]) / 1e9
    assert all(0 < row["fetched_gb"] <= each_once for row in read_metrics(run / "metrics.jsonl"))


FULL_DISK = """
set -u
mount -t tmpfs -o size=4m tmpfs "$1"
(until [ -s "$2/metrics.jsonl" ] || ! kill -0 $$; do sleep 0.05; done
 while kill -0 $$ 2>/dev/null; do dd if=/dev/zero bs=4k >> "$1/other" 2>/dev/null; sleep 0.02; done) &
filler=$!
shift 2
"$@"; echo "exit code $?"
kill $filler
"""


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_disk_that_fills_under_the_cache_is_one_line_after_a_checkpoint(shards, tmp_path):
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    run, cache = tmp_path / "run", tmp_path / "cache"
    cache.mkdir()
    sizes = [shard.bytes for shard in read_manifest(shards).of_split("train")]
    least = smallest_of_run(order_of(shards), range(4), 0, 40, sizes)
    held_out = (shards / "val-000000.tar").stat().st_size
    words = pretrain(f"pipe:cat {shards}/{{}}", run, f"data.cache={cache}", "steps=40", "checkpoint.every=5")
    words.append(f"data.cache_gb={(least + held_out) / 1e9 + 0.0001:.4f}")
    command = [*inside, "bash", "-c", FULL_DISK, "bash", str(cache), str(run), sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, cwd=ROOT, env=environment())
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert ("exit code 2" in done.stdout, len(said)) == (True, 1), done.stderr[-3000:]
    assert "no space left for train-0000" in said[0]
    step = int(re.search(r"with a checkpoint of step (\d+)$", said[0])[1])
    assert (run / "checkpoints" / f"step-{step}" / "COMMITTED").is_file()
    assert len(losses(run)) == step


FULL_FOR_A_WHILE = """
set -u
mkdir -p "$1/checkpoints"
mount -t tmpfs -o size=8m tmpfs "$1/checkpoints"
(until [ -e "$1/checkpoints/step-2/COMMITTED" ] || ! kill -0 $$; do sleep 0.02; done
 until grep -q "could not be written" "$1/said" 2>/dev/null || ! kill -0 $$ 2>/dev/null; do
   dd if=/dev/zero bs=64k >> "$1/checkpoints/other" 2>/dev/null; sleep 0.02; done
 rm "$1/checkpoints/other") &
filler=$! run=$1
shift
"$@" | tee "$run/said"; echo "exit code ${PIPESTATUS[0]}"
ls "$run/checkpoints"
kill $filler 2>/dev/null
"""


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_for_some_checkpoints_is_no_end_of_the_run(shards, tmp_path):
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    run = tmp_path / "run"
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]
    words = pretrain(shards, run, "steps=12", "checkpoint.every=2", "zero=1")
    command = [*inside, "bash", "-c", FULL_FOR_A_WHILE, "bash", str(run), *launcher, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, cwd=ROOT, env=environment())
    warned = [line for line in done.stdout.splitlines() if line.startswith("# WARNING: ")]
    assert warned, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(
        r"step-\d+ could not be written by rank \d \(.*\), .*step-\d+ stays: is the disk full, or gone\?", warned[0]
    )
    assert warned[0].endswith("The run goes on and tries again at the next checkpoint")
    assert done.stdout.split("exit code ")[1].split() == ["0", "step-10", "step-12"], done.stdout[-3000:]
    assert len(losses(run)) == 12


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_run_over_http_stops_at_a_bad_shard_and_goes_on_without_it(shards, tmp_path):
    order, names = order_of(shards), [s.name for s in read_manifest(shards).of_split("train")]
    plan = list(needs(order, range(4), 0, 12))
    bad = next(need for need in plan if need.first >= 4)
    passing = [name for name in names if name != names[bad.shard]]
    with Server(shards, stall=40).serving() as server:
        faults = (["stall"], ["cut", "cut"], ["500", "503"], ["short"], ["long"], ["bytes"], ["cut", "whole"], ["429"])
        server.faults = {name: [*fault, ""] for name, fault in zip(passing, faults)}
        server.faults |= {names[bad.shard]: ["bytes!"], "manifest.json": ["500", ""], "samples.parquet": ["cut", ""]}
        run, cache = tmp_path / "run", tmp_path / "cache"
        words = pretrain(f"{server.url}?token=t0p", run, f"data.cache={cache}", "steps=30")
        code, output = launch(words, 2, LONG)
        said = [line for line in output.splitlines() if line.startswith("error: ")]
        assert (code, len(said)) == (2, 1), output[-3000:]
        assert f"shard {names[bad.shard]} cannot be fetched: {server.url}/{names[bad.shard]}: " in said[0]
        assert said[0].endswith(f"stopped before the step that needs it, with a checkpoint of step {bad.first}")
        assert len(losses(run)) == bad.first
        assert json.loads((run / "run.json").read_text())["status"] == "failed"
        assert all("t0p" not in p.read_text() for p in (run / "config.yaml", *run.glob("checkpoints/*/state.json")))
        server.seen.clear()
        code, output = launch(words, 2, LONG)  # it is as bad as before
        assert (code, output.count("error: ")) == (2, 1), output[-3000:]
        assert len(losses(run)) == bad.first
        assert set(server.times()) == {"manifest.json", names[bad.shard]}
        code, output = launch([*words, f"data.exclude=[{names[bad.shard]}]"], 2, LONG)
        assert code == 0, output[-3000:]
        assert f"# from step {bad.first}: without {names[bad.shard]}" in output
    verdict = judge(run)
    assert verdict.problems == []
    assert [(e.number, e.first, e.last, e.state) for e in verdict.epochs] == [
        (0, 0, bad.first - 1, "cut"),
        (1, bad.first, bad.first + 10, "complete"),
        (2, bad.first + 11, bad.first + 21, "complete"),
        *([(3, bad.first + 22, 29, "unfinished")] if bad.first < 8 else []),
    ]
    near = tmp_path / "near"  # the same samples in the same order as from a local disk
    assert launch(pretrain(shards, near, "steps=30"), 2, LONG)[0] == 0
    assert losses(near)[: bad.first] == losses(run)[: bad.first]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_resume_and_a_second_exclusion_leave_whole_epochs(shards, tmp_path):
    run, [one, two] = tmp_path / "run", ["train-000003.tar", "train-000009.tar"]
    words = pretrain(shards, run, "steps=40", "checkpoint.every=3", "checkpoint.asynchronous=false")
    killed_at(words, 2, run, 7)  # goes on from step 6, in the midst of epoch 0
    killed_at([*words, f"data.exclude=[{one}]"], 1, run, 19)  # epoch 1 is steps 6 to 16; goes on from step 18 or 21
    code, output = launch([*words, f"data.exclude=[{one},{two}]"], 2, LONG)
    assert code == 0, output[-3000:]
    verdict = judge(run)
    assert verdict.problems == []
    found = [int(at) for at in re.findall(r"# from step (\d+): without", output)]
    assert found[0] == 6
    assert [e.state for e in verdict.epochs[:4]] == ["cut", "complete", "cut", "complete"]
    assert [e.first for e in verdict.epochs[:4]] == [0, 6, 17, found[1]]
    sizes = Counter(e.seen for e in verdict.epochs if e.state == "complete")
    assert sizes == {176: 1, 160: sizes[160]}
    rows = read_manifest(shards)
    begins = dict(zip([s.name for s in rows.shards], np.cumsum([0, *[s.samples for s in rows.shards]]).tolist()))
    for name, epochs in ((one, verdict.epochs[1:]), (two, verdict.epochs[3:])):
        assert all(begins[name] not in e.remainder for e in epochs)  # not due, so not left over either
