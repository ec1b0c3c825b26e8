"""What does NT-Xent cost at scale? `python -m benchmarks.ntxent`: tiled (ours) against dense (the [M, M] matrix).

Time and peak memory of one forward and backward pass of B pairs of embeddings, each in a fresh process. The error is
that of a few anchors' losses and of their gradient with respect to all embeddings, against the dense formula in
float64; relative to the largest entry.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.game.losses import anchors
from umbra.config import command, load

TEMPERATURE = 0.1


@dataclass
class NtXentConfig:
    """`pairs`: batch sizes, of which the last one is reported; `dense_up_to`: largest batch for the dense side.

    `dim`: embedding dimension; `checked`: anchors whose loss and gradient are compared; `threads`: 0 for torch's
    default.
    """

    pairs: list[int] = field(default_factory=lambda: [2048, 8192, 32768])
    dense_up_to: int = 8192
    dim: int = 128
    checked: int = 64
    threads: int = 0


def embeddings(pairs: int, dim: int) -> tuple[Tensor, Tensor]:
    """(unit vectors [2 B, dim], positives closer than chance; patient codes [2 B], some patients twice)."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(pairs, dim, generator=generator)
    second = first + torch.randn(pairs, dim, generator=generator)
    patients = torch.randint(pairs, (pairs,), generator=generator)
    return F.normalize(torch.cat([first, second])), torch.cat([patients, patients])


def dense(z: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """The losses of the anchors `rows`, [len(rows), M] similarities at once, in the float type of `z`."""
    n = len(z) // 2
    positives = (rows + n) % (2 * n)
    logits = z[rows] @ z.T / TEMPERATURE
    partner = F.one_hot(positives, 2 * n).bool()
    logits = logits.masked_fill((ids[rows, None] == ids) & ~partner, -math.inf)
    return F.cross_entropy(logits, positives, reduction="none")


def tiled(z: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """The losses of the anchors `rows`; all anchors are computed, forward and backward."""
    return anchors(z, z, ids, ids, 0, TEMPERATURE)[0][rows]


def run(side: str, pairs: int, config: NtXentConfig) -> dict[str, float]:
    """Seconds and MiB of a pass over all anchors, and its largest relative error; meant for a fresh process."""
    if config.threads:
        torch.set_num_threads(config.threads)
    z, ids = embeddings(pairs, config.dim)
    few = torch.arange(0, 2 * pairs, max(1, 2 * pairs // config.checked))
    z.requires_grad_()
    (z[:8] @ z[:8].T).sum().backward()  # warms torch up
    z.grad = None
    before, began = memory("VmRSS"), time.perf_counter()
    losses = dense(z, ids, torch.arange(2 * pairs))[few] if side == "dense" else tiled(z, ids, few)
    losses.sum().backward()
    seconds, peak = time.perf_counter() - began, memory("VmHWM") - before
    assert z.grad is not None
    exact = z.detach().double().requires_grad_()
    wanted = dense(exact, ids, few)
    wanted.sum().backward()
    assert exact.grad is not None
    error = max(deviation(losses, wanted), deviation(z.grad, exact.grad))
    return {"seconds": seconds, "mib": peak, "error": error}


def deviation(got: Tensor, wanted: Tensor) -> float:
    return float((got.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def memory(name: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at its highest."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


def main(words: list[str]) -> None:
    config = load(NtXentConfig, None, words)
    print(f"one process, embeddings of dimension {config.dim}, fp32")
    print(f"{'pairs':>8} {'side':>6} {'s':>9} {'peak MiB':>9} {'relative error':>15}")
    worst, figures, spawn = 0.0, {}, multiprocessing.get_context("spawn")
    for pairs in config.pairs:
        for side in ("dense", "tiled") if pairs <= config.dense_up_to else ("tiled",):
            with spawn.Pool(1) as pool:
                figures = pool.apply(run, (side, pairs, config))
            print(
                f"{pairs:>8} {side:>6} {figures['seconds']:>9.2f} {figures['mib']:>9.0f} {figures['error']:>15.1e}",
                flush=True,
            )
        worst = max(worst, figures["error"])
    print(
        json.dumps(
            {
                "pairs": config.pairs[-1],
                "seconds": round(figures["seconds"], 3),
                "peak_mib": round(figures["mib"], 1),
                "max_relative_error": worst,
            }
        )
    )


if __name__ == "__main__":
    command(main)
