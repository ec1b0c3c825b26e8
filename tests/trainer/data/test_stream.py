import gc
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.devices import on_each
from tests.support.handmade import make_shards
from tests.support.many_shards import SAMPLES, many_shards
from trainer.data import shards as shards_module
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Stream, _Pinned, bottleneck
from trainer.observe.metrics import Metrics
from trainer.observe.throughput import Throughput
from trainer.observe.wandb_mirror import WandbConfig
from umbra.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return many_shards(tmp_path_factory.mktemp("d") / "s")


def stream_of(shards: Shards, stop: int, batch: int = 8, lanes: int = 4, block: int = 2, **options) -> Stream:
    order = Order(shards.counts, 0, batch, lanes, block=block)
    return Stream(shards, order, 0, stop, 0, 1, CPU, **options)


# ---- what is read ----


def test_every_sample_of_three_epochs_is_the_right_one(dataset):
    root, data = dataset
    shards = Shards(root, "train")
    order = Order(shards.counts, 5, 12, 4, 3, block=2)
    for batch in Stream(shards, order, 0, 3 * order.steps_per_epoch, 0, 1, CPU, threads=3):
        assert batch.signals.shape == (3, 4, 12, SAMPLES)
        assert torch.equal(batch.signals, torch.from_numpy(data[batch.rows.numpy()]))
        assert np.array_equal(batch.rows.numpy(), order.step(batch.step))


@pytest.mark.parametrize("ahead", ["mapped", "one by one"])
def test_a_gather_by_threads_out_of_many_shards(dataset, ahead, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    root, data = dataset
    monkeypatch.setattr(shards_module, "CHUNK", 8)
    if ahead == "one by one":  # as on a system that cannot read a mapping ahead
        monkeypatch.setattr(shards_module, "MADV_POPULATE_READ", 9999)
    shards = Shards(root, "train")
    for shard in shards.hold([0, 2, 4, 5]):
        shard.read_ahead()
    mapped = [s for s, shard in shards._held.items() if isinstance(shard.samples, np.ndarray)]
    assert mapped == ([0, 2, 4, 5] if ahead == "mapped" else [])
    indices = np.random.default_rng(0).permutation(len(data))
    out = np.zeros((len(data), 12, SAMPLES), "<i2")
    with ThreadPoolExecutor(3) as pool:
        assert shards.gather(indices, out, pool) is out
    assert np.array_equal(out, data[indices])
    with pytest.raises(ValueError, match="contiguous"):
        shards.gather(indices[:4], np.zeros((4, 12, 2 * SAMPLES), "<i2")[:, :, ::2])
    with pytest.raises(ValueError, match="contiguous"):
        shards.gather(indices[:4], np.zeros((4, 12, SAMPLES), "<f4"))


def test_partners_come_with_their_samples(dataset):
    root, data = dataset
    shards = Shards(root, "train")
    order = Order(shards.counts, 5, 12, 4, 3, block=2)
    asked = []

    def partners(step, indices):
        asked.append(step)
        return (indices * 7 + step) % shards.count

    kept = []
    for batch in Stream(shards, order, 0, 30, 0, 1, CPU, partners=partners):
        kept.append(batch if batch.step % 9 == 0 else None)
        kept = kept[-12:]
        for one in filter(None, kept):
            assert one.signals.shape == one.partners.shape == (3, 4, 12, SAMPLES)
            assert torch.equal(one.signals, torch.from_numpy(data[one.host_rows]))
            assert torch.equal(one.partners, torch.from_numpy(data[partners(one.step, one.host_rows)]))
    assert {*range(30)} <= {*asked}


# ---- memory ----


def test_a_batch_is_not_written_over_while_a_part_of_it_is_in_use(dataset):
    root, data = dataset
    stream = stream_of(Shards(root, "train"), 300)
    kept = []
    for batch in stream:
        if batch.step % 50 == 3:
            kept.append((batch.signals[0, 2:5].transpose(0, 1), batch.rows[0, 2:5].clone()))
    assert len(kept) == 6
    for part, rows in kept:
        assert torch.equal(part.transpose(0, 1), torch.from_numpy(data[rows.numpy()]))


def test_buffers_are_used_again(dataset):
    stream = stream_of(Shards(dataset[0], "train"), 300, ahead=2)
    places = {batch.signals.data_ptr() for batch in stream}
    assert len(places) <= 6
    assert len(stream._memory._free) + 1 >= len(places)


def anonymous() -> int:
    """KiB of this process that no file stands behind."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])


def test_anonymous_memory_is_flat_over_an_epoch(tmp_path):
    root, data = many_shards(tmp_path / "s", (60,) * 16, samples=1000)  # 23 MB
    shards = Shards(root, "train")
    order = Order(shards.counts, 0, 16, 8, block=2)
    length = order.steps_per_epoch
    del data
    seen = []
    for batch in Stream(shards, order, 0, 3 * length, 0, 1, CPU):
        if batch.step >= length:
            seen.append(anonymous())
    gc.collect()
    assert max(seen) - seen[0] < 4096


def test_finished_shards_are_closed(tmp_path):
    root, _ = many_shards(tmp_path / "s", (10,) * 60, samples=32)
    shards = Shards(root, "train")
    before = len(os.listdir("/proc/self/fd"))
    order = Order(shards.counts, 0, 1, 1, block=2)
    held = []
    for batch in Stream(shards, order, 0, order.steps_per_epoch, 0, 1, CPU):
        held.append(len(shards._held))
        assert len(os.listdir("/proc/self/fd")) <= before + 20, batch.step
    assert max(held) <= 10  # 2 times 16 steps, of blocks of 20 samples
    del batch
    assert not shards._held
    assert len(os.listdir("/proc/self/fd")) <= before


def test_no_thread_outlives_its_stream(dataset):
    before = set(threading.enumerate())
    stream = stream_of(Shards(dataset[0], "train"), 500)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(StopIteration):
        next(stream)
    assert len(list(stream_of(Shards(dataset[0], "train"), 20))) == 20
    assert set(threading.enumerate()) <= before


ABANDONED = """
import sys
import torch
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Stream
shards = Shards(sys.argv[1], "train")
stream = Stream(shards, Order(shards.counts, 0, 4, 4), 0, 10**6, 0, 1, torch.device("cpu"))
next(stream)
raise SystemExit(3)
"""


def test_a_stream_that_is_left_open_does_not_crash_the_end_of_the_process(dataset):
    words = [sys.executable, "-c", ABANDONED, str(dataset[0])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stderr) == (3, "")


# ---- bad input ----


def shard_of(tmp_path: Path) -> tuple[Path, Path]:
    root = make_shards(tmp_path / "s", {"train": ["SR"] * 6})
    return root, root / "train-000000.tar"


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "was truncated or overwritten"),
        (lambda p: p.write_bytes(b"\x00" * p.stat().st_size), "sample 0 does not begin"),
        (lambda p: p.write_bytes(os.urandom(p.stat().st_size)), "not part of this data set"),
        (lambda p: overwrite(p, p.stat().st_size // 2, b"\x00" * (p.stat().st_size // 2)), "sample 5 does not begin"),
        (lambda p: overwrite(p, 512, b"\x93NUMPY\x02"), "sample 0 does not begin"),
        (lambda p: overwrite(p, 257, b"GNU!!"), "sample 0 does not begin"),
        (lambda p: overwrite(p, 0, b"000000-000001"), "sample 0 does not begin"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_what_is_no_shard_of_the_data_set_is_named_at_the_start(tmp_path, damage, words):
    root, path = shard_of(tmp_path)
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        Shards(root, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "has schema 99, this version reads 1"),
        ({"fingerprint": "0" * 16}, "does not match its own fingerprint"),
        ({"rate": 250.0}, "does not match its own fingerprint"),
    ],
)
def test_a_manifest_of_another_version_or_fingerprint(tmp_path, change, words):
    root, _ = shard_of(tmp_path)
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=words):
        Shards(root, "train")


@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_shard_that_is_lost_under_way_stops_the_run_with_its_name(tmp_path, harm):
    root, _ = many_shards(tmp_path / "s", (20,) * 30)
    shards = Shards(root, "train")
    stream = stream_of(shards, 1000, batch=1, lanes=1, block=1, ahead=1)
    next(stream)
    for path in root.glob("*.tar"):
        if harm == "removed":
            path.unlink()
        elif shards.shards.index(next(s for s in shards.shards if s.name == path.name)) not in shards._held:
            os.truncate(path, 2000)
    with pytest.raises(UserError, match="is missing" if harm == "removed" else "was truncated"):
        for _ in stream:
            pass
    assert not stream._thread.is_alive()


def test_a_shard_that_is_cut_while_it_is_open_is_an_error_with_its_name(tmp_path):
    root, _ = many_shards(tmp_path / "s", (20, 20))
    shards = Shards(root, "train")
    opened = shards.hold([0, 1])
    os.truncate(root / "train-000001.tar", 4096)
    for shard in opened:
        shard.read_ahead()  # cannot map the second
    out = np.zeros((1, 12, SAMPLES), "<i2")
    shards.gather(np.array([3]), out)
    with pytest.raises(UserError, match=r"train-000001\.tar ends within .* truncated after the start of this run"):
        shards.gather(np.array([39]), out)


CUT_UNDER_A_MAPPING = """
import os, sys
import numpy as np, torch
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Stream
root = sys.argv[1]
shards = Shards(root, "train")
stream = Stream(shards, Order(shards.counts, 0, 4, 4), 0, 4, 0, 1, torch.device("cpu"))
print(len(list(stream)), flush=True)
[opened] = shards.hold([0])
opened.read_ahead()
os.truncate(f"{root}/train-000000.tar", 0)
shards.gather(np.arange(4), np.zeros((4, 12, 256), "<i2"))
"""


def test_a_file_that_is_cut_under_its_mapping_does_not_end_the_process_silently(tmp_path):
    root = make_shards(tmp_path / "s", {"train": ["SR"] * 16})
    words = [sys.executable, "-c", CUT_UNDER_A_MAPPING, str(root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3])
    assert done.stdout == "4\n"
    assert done.returncode == -7
    assert "Bus error" in done.stderr
    assert "shards.py" in done.stderr


# ---- shards that come later ----


def test_shards_that_are_fetched_are_waited_for_and_given_back(tmp_path):
    root, data = many_shards(tmp_path / "there")
    away = tmp_path / "away"
    away.mkdir()
    for path in root.glob("*.tar"):
        path.rename(away / path.name)
    shards, calls = Shards(root, "train", later=True), []

    class Fetcher:
        def wait(self, step: int) -> None:
            calls.append(("wait", step))
            for shard in order.shards(step, 1):
                if (away / shards.shards[shard].name).exists():
                    (away / shards.shards[shard].name).rename(root / shards.shards[shard].name)

        def done(self, step: int) -> None:
            calls.append(("done", step))

    order = Order(shards.counts, 0, 8, 4, block=1)
    for batch in Stream(shards, order, 0, 40, 0, 1, CPU, fetcher=Fetcher()):
        assert torch.equal(batch.signals, torch.from_numpy(data[batch.rows.numpy()]))
    assert [step for call, step in calls if call == "done"] == list(range(40))
    for step in range(40):
        assert calls.index(("wait", step)) < calls.index(("done", step))


def test_a_shard_that_is_removed_while_it_is_opened_is_not_missed(tmp_path, monkeypatch):
    root, _ = many_shards(tmp_path / "s", (8, 8), samples=32)
    shards, path = Shards(root, "train", later=True), root / "train-000001.tar"
    monkeypatch.setattr(os, "open", lambda *words, real=os.open: (path.unlink(missing_ok=True), real(*words))[1])
    assert len(shards.hold([0, 1])) == 1
    assert list(shards._held) == [0]


# ---- meters ----


def test_the_line_of_a_slow_loader_names_what_to_set():
    assert bottleneck(0.1, 0.0, 2, 2) is None
    assert "43 % of the time; raise data.threads (now 3)" in (bottleneck(0.43, 0.2, 3, 2) or "")
    assert "raise data.ahead (now 2)" in (bottleneck(0.43, 1.4, 3, 2) or "")
    assert "raise data.threads (now 3) or data.cache_gb" in (bottleneck(0.43, 0.2, 3, 2, 3) or "")
    assert "put data.path on faster storage" in (bottleneck(0.43, 0.2, 3, 2, 30) or "")


def test_the_depth_of_the_queue_is_a_mean_and_a_note_comes_once(tmp_path, capsys):
    meter = Throughput(skip=1, clock=iter(range(100)).__next__)
    meter.found(100)
    meter.step(8)
    for depth in (2, 1, 0, 2):
        meter.found(depth)
        meter.step(8)
    assert meter.take()["queue_depth"] == 1.25
    assert meter.take() == {}
    metrics = Metrics(tmp_path, WandbConfig(mode="disabled"), {})
    for text in (None, "slow: 1", "slow: 2", "hot: 1"):
        metrics.note(text)
    metrics.close()
    assert capsys.readouterr().out == "# slow: 1\n# hot: 1\n"


def test_the_depth_of_a_stream(dataset):
    stream = stream_of(Shards(dataset[0], "train"), 100, ahead=3)
    next(stream)
    end = time.monotonic() + 10
    while stream.depth < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    stream.close()


# ---- GPU ----


def test_a_page_locked_buffer_is_written_again_only_after_its_copy(monkeypatch):
    """As far as a machine without a GPU can see it: the events are played, and say which copies were waited for."""
    copies, waited, written = iter(range(99)), {-1}, {}

    class Event:
        copy = -1

        def record(self, stream: object) -> None:
            self.copy = next(copies)

        def synchronize(self) -> None:
            waited.add(self.copy)

    def empty(*given, pin_memory, real=torch.empty, **kind):
        assert pin_memory
        return real(*given, **kind)

    def write(number: int, out: np.ndarray) -> None:
        assert written.get(out.ctypes.data, -1) in waited
        written[out.ctypes.data] = number

    monkeypatch.setattr(torch, "empty", empty)
    for name, fake in {"Event": Event, "Stream": id, "stream": nullcontext, "device": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    memory = _Pinned(CPU)
    for number in range(9):
        memory.load((2, 12, SAMPLES), partial(write, number), torch.arange(2))
    assert sorted(written.values()) == [7, 8]


@pytest.mark.parametrize("device", on_each())
def test_batches_on_a_gpu_are_right_while_the_gpu_is_behind(dataset, device):
    root, data = dataset
    shards, large = Shards(root, "train"), 2048 if device == "cuda" else 16
    order, device = Order(shards.counts, 0, 8, 4, block=2), torch.device(device, 0)
    whole, weight = torch.from_numpy(data).to(device), torch.randn(large, large, device=device)
    wrong = torch.zeros((), device=device, dtype=torch.int64)
    for batch in Stream(shards, order, 0, 300, 0, 1, device):
        for _ in range(20):  # the device falls behind the loader
            weight = torch.tanh(weight @ weight)
        wrong += (batch.signals != whole[batch.rows]).sum()
    assert wrong.item() == 0
