"""The caches of a run's remote shards: of one data set, or of the sources of a mixture, which share `data.cache_gb`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from trainer import distributed
from trainer.config import PretrainConfig
from trainer.data.mixture import Mixture
from trainer.data.order import Order
from trainer.data.places import any_remote, named
from trainer.data.remote.board import Node
from trainer.data.remote.cache import Cache, open_cache, space_needed
from trainer.data.remote.caches import Caches, shared
from trainer.data.remote.fetch import Remote, is_remote
from trainer.data.shards import Shards
from trainer.data.sources import Sources
from trainer.run.heldout import kept_shards
from umbra.schema import Shard


def describe_cache(
    cfg: PretrainConfig, train: Shards, heldout: Shards | None, order: Order | Mixture, total: int
) -> str:
    """The disk space that the shards of a run need on each machine; empty if they are not remote."""
    if not any_remote(cfg.data.place):
        return ""
    kept, first = kept_shards(cfg, order, train, heldout), order.first if isinstance(order, Mixture) else 0
    needed = _needed(cfg, train, order, Node(), first, total, kept)
    least, whole = (sum(sizes) for sizes in zip(*needed.values()))
    return f"# data.cache on one machine: {whole / 1e9:.3f} GB for all shards, at least {least / 1e9:.3f} GB\n"


def start_cache(
    cfg: PretrainConfig,
    train: Shards,
    heldout: Shards | None,
    order: Order | Mixture,
    world: distributed.World,
    start: int,
    total: int,
) -> Cache | Caches | None:
    """The cache of remote shards, shared by the processes of a machine, for the steps `start` to `total - 1`."""
    if not any_remote(cfg.data.place):
        return None
    ranks = distributed.ranks_of_machine(world)
    token = f"{distributed.agree(secrets.token_hex(8))}-{ranks[0]}"
    node, kept = Node(world.rank, ranks, world.size), kept_shards(cfg, order, train, heldout)
    budgets = {"": cfg.data.cache_gb}
    if isinstance(train, Sources):
        budgets = shared(cfg.data.cache_gb, _needed(cfg, train, order, node, start, total, kept))
    parts = {}
    for name, gb in budgets.items():
        part, remote = _part(train, name), Remote(named(cfg.data.place)[name])
        words = (part.root, part.manifest, order, node, start, total, gb, token, _of(kept, name, part))
        parts[name] = open_cache(remote, *words, max(4, cfg.data.threads), name)
    cache = Caches(parts) if isinstance(train, Sources) else parts[""]
    if world.is_main:
        place = cfg.data.cache if isinstance(train, Sources) else train.root
        print(f"# shards are fetched into {place}, at most {cache.size / 1e9:.3f} GB at a time", flush=True)
    return cache


def _needed(
    cfg: PretrainConfig,
    train: Shards,
    order: Order | Mixture,
    node: Node,
    start: int,
    stop: int,
    kept: Sequence[Shard],
) -> dict[str, tuple[int, int]]:
    """Bytes that each remote data set needs at least, and those of all its shards."""
    parts = {name: _part(train, name) for name, path in named(cfg.data.place).items() if is_remote(path)}
    return {
        name: space_needed(part.manifest, order, node, start, stop, _of(kept, name, part), name)
        for name, part in parts.items()
    }


def _part(train: Shards, name: str) -> Shards:
    return train.parts[name] if isinstance(train, Sources) else train


def _of(kept: Sequence[Shard], name: str, part: Shards) -> list[Shard]:
    """Those of the shards, which are SOURCE/SHARD of a mixture, that are of one source, as its manifest has them."""
    names = {shard.name for shard in kept}
    return [shard for shard in part.manifest.shards if (f"{name}/{shard.name}" if name else shard.name) in names]
