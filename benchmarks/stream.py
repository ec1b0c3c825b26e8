"""How fast do shards become batches? `python -m benchmarks.stream [key=value]`.

On one core, from cached files: `webdataset` in its usual form, `np.copyto` of the same bytes in file order (into
reused buffers, as the loader does; from the mapped shards, and from an array in memory), and our stream at its default
settings: in the middle of a run, and restarted for each epoch, with its threads, checks and mappings. Alternating
rounds; medians. Seconds are CPU time, not wall time, so that other work on the machine matters less.
`fraction_of_copy` is relative to the copy from the mapped shards, the smaller one of the two window lengths.

Then uncached files, read sample by sample in the order of an epoch, and by the stream at the pace of a training run:
how much is read from the disk, and in how many requests.

Last, in wall time and on all cores: GB/s of one process's stream with 1, 2 and 4 threads, to the GPU (out of its
page-locked buffers) where there is one, in turns with `file.read` of the same cached files. `fraction_of_read` is the
median of the rounds' ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sharding.writer import ShardWriter, metadata_bytes
from trainer.data.order import Order, default_lanes
from trainer.data.shards import Shards
from trainer.data.stream import Stream
from umbra.config import command, load
from umbra.leads import CANONICAL
from umbra.schema import DTYPE, MANIFEST, Geometry, Manifest, Shard, fingerprint

CPU = torch.device("cpu")
THREADS = (1, 2, 4)
META = {"source": "benchmark", "age": 63.0, "sex": "female", "codes": ["426783006"], "patient": 1, "quality": []}


@dataclass
class StreamConfig:
    """`shards` of `mb` MB each; batches of `batch`; `rounds` of `seconds` per side; `pace` of training in samples/s.

    `large`: the batch of the streams of several threads. `folder`: where the shards are written temporarily.
    """

    shards: int = 12
    mb: float = 16.0
    batch: int = 64
    large: int = 256
    rounds: int = 5
    seconds: float = 1.0
    pace: float = 2000.0
    folder: str = ""


def main(words: list[str]) -> None:
    config = load(StreamConfig, None, words)
    cores = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    figures: dict[str, object] = {}
    fractions = []
    for samples in (1000, 2500):
        with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
            shards = write(config, Path(folder) / "data", samples)
            os.sched_setaffinity(0, {max(cores)})
            speeds = warm(config, shards)
            print_speeds(shards, speeds)
            figures[f"speedup_{samples}"] = round(speeds["stream"] / speeds["webdataset"], 1)
            fractions.append(speeds["stream"] / speeds["copy, mapped"])
            print_memory(config, shards)
            print_cold(config, shards)
            os.sched_setaffinity(0, cores)
            if samples == 2500:
                figures |= print_threads(config, shards)
    print(json.dumps({**figures, "fraction_of_copy": round(min(fractions), 2)}))


def write(config: StreamConfig, root: Path, samples: int) -> Shards:
    """A data set of noise, 12 leads, flushed to disk."""
    geometry, leads = Geometry(12, samples, 256), list(CANONICAL)
    count = int(config.mb * 1e6 / geometry.stride)
    rng, shards = np.random.default_rng(0), []
    root.mkdir(parents=True)
    for ordinal in range(config.shards):
        path = root / f"train-{ordinal:06d}.tar"
        with open(path, "wb") as file:
            writer = ShardWriter(file, geometry, ordinal)
            for array in rng.integers(-2000, 2000, (count, 12, samples), DTYPE):
                writer.add(array, metadata_bytes(META, geometry.meta_bytes) or b"")
            digest = writer.close()
            file.flush()
            os.fsync(file.fileno())
        shards.append(Shard(path.name, "train", count, path.stat().st_size, digest))
    mark = fingerprint(shards, geometry, 100.0, leads, 1.0)
    scale = [0.0] * 12, [1.0] * 12
    manifest = Manifest(mark, 100.0, leads, samples, 1.0, geometry.meta_bytes, shards, *scale, True, "public")
    (root / MANIFEST).write_text(manifest.to_json())
    return Shards(root, "train")


def order_of(batch: int, shards: Shards) -> Order:
    return Order(shards.counts, 0, batch, default_lanes(batch))


def in_turns(
    sides: dict[str, Generator[int]], rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """What each side yields per second of the clock, in each round; closes the sides."""
    for side in sides.values():
        next(side)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seen, began = 0, clock()
            while (passed := clock() - began) < seconds:
                seen += next(side)
            speeds[name].append(seen / passed)
    for side in sides.values():
        side.close()
    return speeds


# ---- warm ----


def warm(config: StreamConfig, shards: Shards) -> dict[str, float]:
    """Samples per second of CPU time (over all threads of this process) of each side."""
    sides = {
        "webdataset": webdataset(config, shards),
        "copy, memory": copy(config, shards, mapped=False),
        "copy, mapped": copy(config, shards, mapped=True),
        "stream": stream(config.batch, shards, 10**6),
        "stream, again": stream(config.batch, Shards(shards.root, "train"), 1),
    }
    speeds = in_turns(sides, config.rounds, config.seconds, time.process_time)
    return {name: statistics.median(values) for name, values in speeds.items()}


def webdataset(config: StreamConfig, shards: Shards) -> Generator[int]:
    """Batch sizes, endlessly."""
    import webdataset as wds

    paths = [str(shards.root / shard.name) for shard in shards.shards]
    while True:
        data = wds.WebDataset(paths, shardshuffle=100).shuffle(1000).decode().batched(config.batch)
        for batch in data:
            yield len(batch["ecg.npy"])


def copy(config: StreamConfig, shards: Shards, mapped: bool) -> Generator[int]:
    """Batch sizes, endlessly; batches are copied sequentially into four alternating buffers."""
    geometry = shards.manifest.geometry
    shape = (config.batch, geometry.array_bytes // DTYPE.itemsize)
    buffers = [np.zeros(shape, DTYPE) for _ in range(4)]
    sources = []
    for shard in shards.shards:
        raw = np.memmap(shards.root / shard.name, mode="r")
        strides = (geometry.stride, DTYPE.itemsize)
        array = np.ndarray((shard.samples, shape[1]), DTYPE, raw, geometry.first, strides)
        sources.append(array if mapped else array.copy())
    while True:
        for source in sources:
            for at in range(0, len(source) - config.batch + 1, config.batch):
                np.copyto(buffers[at // config.batch % 4], source[at : at + config.batch])
                yield config.batch


def stream(batch: int, shards: Shards, epochs: int, device: torch.device = CPU, threads: int = 2) -> Generator[int]:
    """Batch sizes, endlessly, from successive streams of so many epochs."""
    order, first = order_of(batch, shards), 0
    while True:
        with contextlib.closing(some_epochs(shards, order, first, epochs, device, threads)) as batches:
            for one in batches:
                yield one.signals.shape[1]
        first += epochs


def some_epochs(
    shards: Shards, order: Order, first: int, epochs: int = 1, device: torch.device = CPU, threads: int = 2
) -> Stream:
    length = order.steps_per_epoch
    return Stream(shards, order, first * length, (first + epochs) * length, 0, 1, device, threads)


def print_speeds(shards: Shards, speeds: dict[str, float]) -> None:
    geometry = shards.manifest.geometry
    print(f"\n12 x {geometry.samples}, {len(shards.shards)} shards of {shards.counts[0]}, warm, one core")
    print(f"{'':<16} {'samples/s':>12} {'MB/s':>9} {'stream is':>10}")
    for name, speed in speeds.items():
        megabytes, ratio = speed * geometry.array_bytes / 1e6, speeds["stream"] / speed
        print(f"{name:<16} {speed:>12,.0f} {megabytes:>9,.0f} {ratio:>9.2f}x", flush=True)


# ---- memory ----


def print_memory(config: StreamConfig, shards: Shards) -> None:
    """Anonymous memory of this process over an epoch, after one warm-up epoch."""
    order = order_of(config.batch, shards)
    for _ in some_epochs(shards, order, 0):
        pass
    seen = [status("RssAnon") for _ in some_epochs(shards, order, 1)]
    tenths = [seen[i * (len(seen) - 1) // 10] / 1024 for i in range(11)]
    print(
        f"RssAnon over an epoch of {order.steps_per_epoch} steps, MiB:", *(f"{mib:.1f}" for mib in tenths), flush=True
    )


def status(name: str) -> int:
    """A size of this process in KiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


# ---- cold ----


def print_cold(config: StreamConfig, shards: Shards) -> None:
    """One epoch from uncached files: samples read one by one, then the stream, at the given pace."""
    order = order_of(config.batch, shards)
    print(f"{'cold, one epoch':<16} {'read MB':>12} {'of data':>9} {'requests':>10} {'KB each':>9}")
    for name in ("one by one", "stream"):
        evict(shards)
        read, requests, began = read_bytes(), disk_requests(shards.root), time.perf_counter()
        batches = some_epochs(shards, order, 2) if name == "stream" else one_by_one(shards, order, 2)
        for step, _ in enumerate(batches):
            time.sleep(max(0.0, began + (step + 1) * config.batch / config.pace - time.perf_counter()))
        megabytes = (read_bytes() - read) / 1e6
        share = megabytes * 1e6 / sum(shard.bytes for shard in shards.shards)
        count = None if requests is None else (disk_requests(shards.root) or 0) - requests
        words = f"{count:>10,} {megabytes * 1e3 / max(count, 1):>9.0f}" if count else f"{'unknown':>10}"
        print(f"{name:<16} {megabytes:>12.1f} {share:>9.2f} {words}", flush=True)


def one_by_one(shards: Shards, order: Order, epoch: int) -> Iterator[object]:
    length = order.steps_per_epoch
    out = np.zeros((order.batch, 12, shards.manifest.samples), DTYPE)
    for step in range(epoch * length, (epoch + 1) * length):
        yield shards.gather(order.step(step).ravel(), out)


def evict(shards: Shards) -> None:
    for shard in shards.shards:
        handle = os.open(shards.root / shard.name, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_bytes() -> int:
    """Bytes that this process has caused to be read from disks."""
    return int(Path("/proc/self/io").read_text().partition("read_bytes:")[2].split()[0])


def disk_requests(folder: Path) -> int | None:
    """Read requests that the disk of a folder has completed, for all processes."""
    device = folder.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(path.read_text().split()[0]) if path.is_file() else None


# ---- threads ----


def print_threads(config: StreamConfig, shards: Shards) -> dict[str, dict[str, float]]:
    """GB/s of wall time, and how many times `file.read` each number of threads is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = {"file.read": read_files(shards)}
    for threads in THREADS:
        sides[f"threads={threads}"] = signal_bytes(Shards(shards.root, "train"), config.large, device, threads)
    speeds = in_turns(sides, config.rounds, config.seconds, time.perf_counter)
    each = shards.manifest.geometry.array_bytes
    gigabytes, ratios = {}, {}
    print(f"{f'{config.large} to {device}':<16} {'GB/s':>8} {'worst':>8} {'best':>8} {'ECG/s':>10} {'of read':>8}")
    for name, values in speeds.items():
        ratios[name] = round(statistics.median(a / b for a, b in zip(values, speeds["file.read"])), 2)
        middle, worst, best = (of(values) for of in (statistics.median, min, max))
        gigabytes[name] = round(middle / 1e9, 2)
        words = f"{middle / 1e9:>8.2f} {worst / 1e9:>8.2f} {best / 1e9:>8.2f} {middle / each:>10,.0f}"
        print(f"{name:<16} {words} {ratios[name]:>7.2f}x", flush=True)
    return {"gb_per_s": gigabytes, "fraction_of_read": ratios}


def read_files(shards: Shards) -> Generator[int]:
    """Bytes of one shard after the other, endlessly, each read as a whole."""
    while True:
        for shard in shards.shards:
            with open(shards.root / shard.name, "rb") as file:
                yield len(file.read())


def signal_bytes(shards: Shards, batch: int, device: torch.device, threads: int) -> Generator[int]:
    """Bytes of the signals of one batch after the other, endlessly; each is there once it is yielded."""
    for count in stream(batch, shards, 10**6, device, threads):
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        yield count * shards.manifest.geometry.array_bytes


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.stream"
    command(main)
