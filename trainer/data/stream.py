"""Prefetches batches to the device: one thread plans and gathers, others copy samples and read shards ahead."""

from __future__ import annotations

import atexit
import faulthandler
import queue
import resource
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.shards import Shards
from umbra.schema import DTYPE

PLAN = 32  # steps planned at a time; the shards of as many following steps are read ahead
FETCHED_PLAN = 4  # the same for fetched shards: a removed one takes disk space until it is closed
FILES = 65536  # limit on open files, where the system allows it

Write = Callable[[NDArray[np.int16]], object]
Partners = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]  # (step, indices) -> indices of their partners


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: `signals` int16 [micro, share, leads, samples], `rows` int64 [micro, share].

    `rows` are row numbers of `samples.parquet`; `host_rows` are the same on the CPU. `partners`: the signals of the
    second views, if they differ.
    """

    step: int
    signals: Tensor
    rows: Tensor
    host_rows: NDArray[np.int64]
    partners: Tensor | None = None


class Plan(Protocol):
    """Which samples when, as `Order` says it: those of `steps` [n, micro, share], and the `shards` to read ahead."""

    def steps(self, step: int, count: int, rank: int, world: int) -> NDArray[np.int64]: ...

    def shards(self, step: int, count: int, rank: int, world: int) -> NDArray[np.int64]: ...


class Fetcher(Protocol):
    """Provides remote shards: `wait` blocks until those of a step are there, `done` reports that it was read."""

    def wait(self, step: int) -> None: ...

    def done(self, step: int) -> None: ...


class Stream(Iterator[Batch]):
    """The batches of steps `start` to `stop - 1`, in order; a read error is raised by `next`.

    `threads` copy samples, `ahead` batches are prefetched. The memory of a batch is reused only once no tensor uses it.
    `close` (or the end) stops the threads.
    """

    def __init__(
        self,
        shards: Shards,
        order: Plan,
        start: int,
        stop: int,
        rank: int,
        world: int,
        device: torch.device,
        threads: int = 2,
        ahead: int = 2,
        fetcher: Fetcher | None = None,
        partners: Partners | None = None,
    ) -> None:
        self._shards, self._order, self._place = shards, order, (rank, world)
        self._start, self._stop, self._threads = start, stop, threads
        self._fetcher, self._partners = fetcher, partners
        self._remaining = stop - start
        self._memory = _Pinned(device) if device.type == "cuda" else _Memory()
        self._ready: queue.SimpleQueue[tuple[Batch, Any] | BaseException] = queue.SimpleQueue()
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()  # an item for each batch that may be prepared
        for _ in range(ahead):
            self._slots.put(None)
        self._closed = threading.Event()
        _prepare_process()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread still copying while the interpreter shuts down would crash it

    def __next__(self) -> Batch:
        if self._remaining <= 0 or self._closed.is_set():
            self.close()
            raise StopIteration
        item = self._ready.get()
        self._slots.put(None)
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._remaining -= 1
        batch, copied = item
        if copied is not None:
            _hand_over(batch, copied)
        return batch

    @property
    def depth(self) -> int:
        """Number of batches that are ready."""
        return self._ready.qsize()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closed.set()
        self._slots.put(None)
        self._thread.join(timeout=10)
        self._shards.hold(())

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                pools = [ThreadPoolExecutor(self._threads, name) for name in ("copy", "shards-ahead")]
                for pool in pools:
                    stack.callback(pool.shutdown, cancel_futures=True)
                for step, indices, rows in self._plan(pools[1]):
                    self._slots.get()
                    if self._closed.is_set():
                        return
                    self._ready.put(self._load(step, indices, rows, pools[0]))
        except BaseException as error:
            self._ready.put(error)

    def _plan(self, reader: ThreadPoolExecutor) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
        """Each step with its indices and rows [micro, share]; reads the shards of the following steps ahead."""
        order, step = self._order, self._start
        now: list[int] = []
        most = PLAN if self._fetcher is None else FETCHED_PLAN
        while step < self._stop:
            plan = order.steps(step, min(most, self._stop - step), *self._place)
            later = step + len(plan)
            now = now or order.shards(step, most, *self._place).tolist()
            coming = order.shards(later, most, *self._place).tolist() if later < self._stop else []
            if self._fetcher:
                self._fetcher.wait(step)
            for shard in self._shards.hold([*now, *coming]):
                reader.submit(shard.read_ahead)
            yield from zip(range(step, later), plan, torch.from_numpy(self._shards.rows_of(plan)))
            step, now = later, coming

    def _load(self, step: int, indices: NDArray[np.int64], rows: Tensor, pool: ThreadPoolExecutor) -> tuple[Batch, Any]:
        if self._fetcher:
            self._fetcher.wait(step)
        wanted = indices if self._partners is None else np.stack([indices, self._partners(step, indices)])
        shape = (*wanted.shape, *self._shards.shape)
        signals, device_rows, copied = self._memory.load(
            shape, lambda out: self._shards.gather(wanted, out, pool), rows
        )
        pair = (signals,) if self._partners is None else signals.unbind()
        if self._fetcher:
            self._fetcher.done(step)
        return Batch(step, pair[0], device_rows, rows.numpy(), *pair[1:]), copied


def millivolts(signals: Tensor, resolution_mv: float) -> Tensor:
    """int16 -> fp32 mV, on the signals' device."""
    return signals.float() * resolution_mv


def bottleneck(data_wait: float, depth: float, threads: int, ahead: int, fetched: int | None = None) -> str | None:
    """A message that steps wait for the loader, with what to set; None if they do not.

    `data_wait`: fraction of the time spent waiting; `depth`: mean number of batches ready when one was requested;
    `fetched`: number of steps ahead whose remote shards are in place.
    """
    if data_wait < 0.2:
        return None
    if fetched is not None and fetched <= ahead + FETCHED_PLAN:
        fix = (
            f"shards arrive too slowly: raise data.threads (now {threads}) or data.cache_gb, or copy them to a local "
            "disk"
        )
    elif depth >= 1:
        fix = f"batches arrive in bursts: raise data.ahead (now {ahead})"
    else:
        fix = f"raise data.threads (now {threads}), or put data.path on faster storage if that does not help"
    return f"the loader is the bottleneck: steps wait for data {100 * data_wait:.0f} % of the time; {fix}"


class _Memory:
    """Batches in host memory. A buffer is reused once no tensor, view or array refers to it."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.int16]] = []

    def load(self, shape: tuple[int, ...], write: Write, rows: Tensor) -> tuple[Tensor, Tensor, None]:
        buffer = self._free.pop() if self._free else np.empty(shape, DTYPE)
        write(buffer)
        lent = buffer.view()  # lives until the last tensor on it is gone
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent), rows, None


class _Pinned:
    """Batches on a GPU, copied on a separate CUDA stream from two alternating page-locked buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._buffers: list[tuple[Tensor, Any]] = []

    def load(self, shape: tuple[int, ...], write: Write, rows: Tensor) -> tuple[Tensor, Tensor, Any]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            buffer, copied = self._next(shape)
            copied.synchronize()  # waits for the copy from this buffer, two batches ago
            write(buffer.numpy())
            signals, rows = (x.to(self._device, non_blocking=True) for x in (buffer, rows))
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._buffers.append((buffer, copied))
        return signals, rows, copied

    def _next(self, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
        if len(self._buffers) < 2:
            return torch.empty(shape, dtype=torch.int16, pin_memory=True), torch.cuda.Event()
        return self._buffers.pop(0)


def _hand_over(batch: Batch, copied: Any) -> None:
    """Makes the caller's CUDA stream wait for the copy, and keeps the memory until that stream is done with it."""
    stream = torch.cuda.current_stream(batch.signals.device)
    stream.wait_event(copied)
    for tensor in (batch.signals, batch.rows):
        tensor.record_stream(stream)


def _prepare_process() -> None:
    """Raises the limit on open files; enables a traceback if a mapped file is truncated (SIGBUS)."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
