"""The caches of a mixture's remote sources, as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.data.remote.board import ShardError
from trainer.data.remote.cache import Cache
from umbra.errors import UserError


@dataclass(frozen=True)
class Caches:
    """As one `Cache`: a step's data are in place when those of all sources are."""

    parts: Mapping[str, Cache]

    def wait(self, step: int) -> None:
        for cache in self.parts.values():
            cache.wait(step)

    def failure_by(self, step: int, unless: Callable[[], bool] = lambda: False) -> ShardError | None:
        return next(filter(None, (cache.failure_by(step, unless) for cache in self.parts.values())), None)

    def done(self, step: int) -> None:
        for cache in self.parts.values():
            cache.done(step)

    @property
    def failure(self) -> ShardError | None:
        """The first one in the order of steps."""
        found = [error for cache in self.parts.values() if (error := cache.failure) is not None]
        return min(found, key=lambda error: error.step, default=None)

    def meters(self) -> dict[str, float]:
        counts = [cache.counts for cache in self.parts.values()]
        hits, fetched, size = (sum(count[key] for count in counts) for key in ("hits", "fetched", "bytes"))
        return {"cache_hits": hits / max(hits + fetched, 1), "fetched_gb": size / 1e9}

    @property
    def size(self) -> int:
        return sum(cache.size for cache in self.parts.values())

    @property
    def ahead(self) -> int:
        return min(cache.ahead for cache in self.parts.values())

    def close(self) -> None:
        for cache in self.parts.values():
            cache.close()


def shared(gb: float, needed: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """`data.cache_gb`, shared by sources that need (the least, the size of all shards) in bytes; 0 stays 0.

    Raises `UserError` if it is below the sum of what they need at least.
    """
    least, whole = (sum(sizes) for sizes in zip(*needed.values()))
    if not gb:
        return dict.fromkeys(needed, 0.0)
    if gb * 1e9 < least:
        raise UserError(
            f"data.cache_gb={gb:g} is too small: {-(-least // 1_000_000) / 1000:g} is the minimum that works for all "
            "remote sources; a lower data.block_shards or data.lanes needs less"
        )
    more = min(1.0, (gb * 1e9 - least) / max(whole - least, 1))
    return {name: (low + more * (high - low) + 1) / 1e9 for name, (low, high) in needed.items()}
