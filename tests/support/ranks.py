"""Several ranks as threads of one process."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.support.handmade import make_shards
from trainer import distributed
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.views import build
from umbra.encoders.encoder import Scaling


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    train = Shards(make_shards(tmp_path_factory.mktemp("data") / "s", {"train": ["SR", "AFIB", "STACH"] * 20}), "train")
    leads = train.manifest.leads
    return types.SimpleNamespace(
        cfg=types.SimpleNamespace(seed=3),
        train=train,
        order=Order(train.counts, 3, 16, 8, 2, 2),
        scaling=Scaling([0.1] * 12, [0.5] * 12),
        first=build(["vcg", "gaussian", "time_mask"], leads),
        second=build(["gaussian", {"name": "block_mask", "blocks": 2}], leads),
        patients=torch.tensor(train.patients()),
    )
