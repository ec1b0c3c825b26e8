"""The remote shards of a mixture: two caches as one, which share a budget."""

import numpy as np
import pytest

from tests.support.many_shards import many_shards
from trainer.data.mixture import Mixture, Source
from trainer.data.remote.board import Node
from trainer.data.remote.cache import open_cache, space_needed
from trainer.data.remote.caches import Caches, shared
from trainer.data.remote.fetch import Limits, Remote
from umbra.errors import UserError
from umbra.schema import read_manifest

QUICK = Limits(stall=5, attempts=2, pause=0.01, longest=0.02)
COUNTS = {"a": (9, 5, 14, 6, 8, 8, 7, 9), "b": (8, 8, 8, 3)}


@pytest.fixture
def mixture() -> Mixture:
    sources = [Source(name, counts, share, 2) for (name, counts), share in zip(COUNTS.items(), (3, 1))]
    return Mixture(tuple(sources), 1, 8, 4, block=2)


@pytest.fixture
def roots(tmp_path):
    return {name: many_shards(tmp_path / name, counts, 16, ord(name))[0] for name, counts in COUNTS.items()}


def caches_of(mixture, roots, place, gb=0.0, stop=40) -> Caches:
    manifests = {name: read_manifest(root) for name, root in roots.items()}
    needed = {name: space_needed(m, mixture, Node(), 0, stop, (), name) for name, m in manifests.items()}
    caches = {}
    for name, part in shared(gb, needed).items():
        remote, words = Remote(f"pipe:cat {roots[name]}/{{}}", QUICK), (Node(), 0, stop, part, "token", (), 4, name)
        caches[name] = open_cache(remote, place / name, manifests[name], mixture, *words)
    return Caches(caches)


def test_the_shards_of_each_step_are_there_within_the_budget(mixture, roots, tmp_path):
    caches = caches_of(mixture, roots, tmp_path / "cache")
    ends = np.cumsum([n for counts in COUNTS.values() for n in counts])
    names = [f"{name}/train-{i:06d}.tar" for name, counts in COUNTS.items() for i in range(len(counts))]
    for step in range(40):
        caches.wait(step)
        assert caches.ahead >= 1
        for shard in set(np.searchsorted(ends, mixture.step(step).ravel(), "right").tolist()):
            kept, true = tmp_path / "cache" / names[shard], tmp_path / names[shard]
            assert kept.read_bytes() == true.read_bytes()
        assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/*.tar")) <= caches.size
        caches.done(step)
    assert caches.failure is None
    assert caches.meters()["fetched_gb"] > 0
    caches.close()


def test_a_shard_that_cannot_be_had_is_named_with_its_source(mixture, roots, tmp_path):
    (roots["b"] / "train-000002.tar").unlink()
    caches = caches_of(mixture, roots, tmp_path / "cache")
    failed = next(error for step in range(40) if (error := caches.failure_by(step)) or caches.done(step))
    needed = [step for step in range(40) if 8 + 2 in mixture.shards(step, 1).tolist()]
    assert failed.step == needed[0] == caches.failure.step
    assert "or leave the shard out with data.exclude=[b/train-000002.tar]" in str(failed)
    caches.close()


def test_the_budget_is_shared_by_what_each_needs():
    needed = {"a": (10**9, 9 * 10**9), "b": (2 * 10**9, 3 * 10**9)}
    assert shared(0, needed) == {"a": 0, "b": 0}
    parts = shared(6, needed)
    assert sum(parts.values()) == pytest.approx(6)
    assert parts["a"] - 1 == pytest.approx(8 / 9 * 3)
    assert shared(99, needed) == pytest.approx({"a": 9, "b": 3})
    with pytest.raises(
        UserError, match=r"data.cache_gb=2 is too small: 3 is the minimum that works for all remote sour"
    ):
        shared(2, needed)
