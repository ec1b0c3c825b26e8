"""Batches on the device, read ahead by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharding.schema import DTYPE
from trainer.data.order import Order
from trainer.data.shards import Shards


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: `signals` int16 [micro, share, leads, samples], `rows` int64 [micro, share]."""

    step: int
    signals: Tensor
    rows: Tensor


def batches(
    shards: Shards, order: Order, start: int, stop: int, rank: int, world: int, device: torch.device, ahead: int = 2
) -> Iterator[Batch]:
    """Yields the batches of steps `start` to `stop - 1` in order; an error while reading is raised here."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put(_read(shards, order.step(step, rank, world), step, pin=device.type == "cuda"))
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield Batch(item.step, item.signals.to(device, non_blocking=True), item.rows.to(device, non_blocking=True))
    finally:
        closed.set()
        thread.join(timeout=10)


def millivolts(signals: Tensor, resolution_mv: float) -> Tensor:
    """int16 -> fp32 mV, on the signals' device."""
    return signals.float() * resolution_mv


def _read(shards: Shards, indices: np.ndarray, step: int, pin: bool) -> Batch:
    shape = (indices.size, len(shards.manifest.leads), shards.manifest.samples)
    signals = torch.empty(shape, dtype=torch.int16, pin_memory=pin)
    shards.gather(indices.ravel(), signals.numpy().view(DTYPE))
    rows = torch.from_numpy(indices + shards.rows.start)
    return Batch(step, signals.view(*indices.shape, *shape[1:]), rows)
