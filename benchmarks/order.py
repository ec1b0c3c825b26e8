"""How well does the order of samples mix, and what does it cost? `python -m benchmarks.order`.

Mixing: how far apart neighbours of the data set (samples i and i + 1) are in the sequence of training samples, and how
often they share a batch, relative to a uniform permutation of all samples (= 1). Cost: the CPU time of one step's
batch, for one rank of many and for all at once, over two epochs, in a fresh process.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.order import Order
from umbra.config import command, load

PER_SHARD = 1000


@dataclass
class OrderConfig:
    """Mixing: `sizes` of data sets in samples, `blocks` in shards. Cost: `samples` for `world` ranks."""

    sizes: list[int] = field(default_factory=lambda: [20_000, 200_000, 2_000_000])
    blocks: list[int] = field(default_factory=lambda: [1, 2, 8, 32])
    batch: int = 256
    lanes: int = 64
    samples: int = 10_000_000
    world: int = 1024


def neighbours(order: Order) -> tuple[float, float]:
    """(median distance between neighbours, fraction of them in one batch), both relative to a uniform permutation."""
    seen = order.steps(0, order.steps_per_epoch).reshape(order.steps_per_epoch, -1)
    place = np.full(sum(order.counts), -1)
    place[seen.ravel()] = np.arange(seen.size)
    both = (place[:-1] >= 0) & (place[1:] >= 0)
    distance = np.abs(place[1:] - place[:-1])[both]
    together = np.mean(place[1:][both] // order.batch == place[:-1][both] // order.batch)
    uniform = seen.size * (1 - np.sqrt(0.5))  # the median of |x - y| for two uniform positions
    return float(np.median(distance) / uniform), float(together / ((order.batch - 1) / (seen.size - 1)))


def cost(config: OrderConfig) -> dict[str, float]:
    """Milliseconds and MiB of one rank's share of a step's batch, and of the whole batch of all ranks at once."""
    Order((64, 64), 0, 16, 4).step(0)  # warms numpy up
    before = memory()
    counts = (PER_SHARD,) * (config.samples // PER_SHARD)
    began = time.thread_time()
    order = Order(counts, 0, 32 * config.world, config.world)
    order.step(0, 0, config.world)
    first = time.thread_time() - began
    length = order.steps_per_epoch
    share = [timed(order, step, config.world // 2, config.world) for step in range(length // 2, length + length // 2)]
    rank_mib = memory() - before
    timed(order, length * 3, 0, 1)
    whole = [timed(order, step, 0, 1) for step in range(length * 3 + 1, length * 3 + 41)]
    return {
        "first_step_ms": first * 1e3,
        "step_ms": statistics.median(share) * 1e3,
        "slowest_step_ms": max(share) * 1e3,
        "mib": rank_mib,
        "whole_batch_ms": statistics.median(whole) * 1e3,
        "whole_batch_mib": memory() - before,
    }


def timed(order: Order, step: int, rank: int, world: int) -> float:
    began = time.thread_time()
    order.step(step, rank, world)
    return time.thread_time() - began


def memory() -> float:
    """Anonymous memory of this process in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def main(words: list[str]) -> None:
    config = load(OrderConfig, None, words)
    print("neighbours of the data set, relative to a uniform permutation of all samples")
    print(f"{'samples':>12} {'block_shards':>13} {'median distance':>16} {'in one batch':>13}")
    mixing = {}
    for size in config.sizes:
        for block in config.blocks:
            order = Order((PER_SHARD,) * (size // PER_SHARD), 0, config.batch, config.lanes, block=block)
            distance, together = neighbours(order)
            print(f"{size:>12,} {block:>13} {distance:>16.3f} {together:>13.2f}", flush=True)
            mixing[f"{size}/{block}"] = round(distance, 3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(cost, (config,))
    shards = config.samples // PER_SHARD
    print(f"\n{config.samples:,} samples, {shards:,} shards, {config.world:,} ranks, batch {32 * config.world:,}")
    print(f"{'':<34} {'ms':>8} {'MiB':>8}")
    print(f"{'first step of a rank':<34} {figures['first_step_ms']:>8.2f}")
    print(f"{'step of a rank, median':<34} {figures['step_ms']:>8.2f} {figures['mib']:>8.1f}")
    print(f"{'step of a rank, slowest':<34} {figures['slowest_step_ms']:>8.2f}")
    print(f"{'whole batch of a step, median':<34} {figures['whole_batch_ms']:>8.2f} {figures['whole_batch_mib']:>8.1f}")
    print(json.dumps({"distance": mixing, **{name: round(value, 2) for name, value in figures.items()}}))


if __name__ == "__main__":
    command(main)
