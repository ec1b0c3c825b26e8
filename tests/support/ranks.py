"""Several ranks as threads of one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from trainer import distributed


class Ranks:
    """What the ranks send each other; backward passes run in the thread that asks for them."""

    def __init__(self, size: int) -> None:
        self.size, self.slots = size, [None] * size
        self.barrier, self.own = threading.Barrier(size, timeout=60), threading.local()

    def exchange(self, value):
        self.slots[self.own.rank] = value
        self.barrier.wait()
        all_values = list(self.slots)
        self.barrier.wait()
        return all_values

    def gather_tensors(self, local: Tensor) -> list[Tensor]:
        return self.exchange(local.detach())

    def scatter_sum(self, parts: list[Tensor]) -> Tensor:
        return sum(theirs[self.own.rank] for theirs in self.exchange(parts))

    def add_over_ranks(self, value: Tensor) -> Tensor:
        return value.copy_(sum(self.exchange(value.clone())))

    def mean(self, gradient: Tensor) -> Tensor:
        return sum(self.exchange(gradient.clone())) / self.size

    def play(self, job) -> list:
        def run(rank: int):
            self.own.rank = rank
            return job(rank)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(run, range(self.size)))


def on_ranks(ranks: Ranks, monkeypatch) -> None:
    """Lets the loss and batch norm of each thread speak through `ranks`."""
    monkeypatch.setattr(distributed, "size", lambda: ranks.size)
    monkeypatch.setattr(distributed, "rank", lambda: ranks.own.rank)
    monkeypatch.setattr(distributed, "gather_tensors", ranks.gather_tensors)
    monkeypatch.setattr(distributed, "scatter_sum", ranks.scatter_sum)
    monkeypatch.setattr(distributed, "add_over_ranks", ranks.add_over_ranks)
