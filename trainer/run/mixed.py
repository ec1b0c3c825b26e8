"""What is particular to a run that mixes data sets: its order, caches, records and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import PretrainConfig
from trainer.data.audit_records import Mixed
from trainer.data.mixture import Mixture
from trainer.data.mixtures import Taken, current, ever, mixtures
from trainer.data.order import Order
from trainer.data.places import named
from trainer.data.remote.board import Node
from trainer.data.remote.cache import open_cache
from trainer.data.remote.cache import space_needed as needed_by_one
from trainer.data.remote.caches import Caches, shared
from trainer.data.remote.fetch import Remote, is_remote
from trainer.data.shards import Shards
from trainer.data.sources import Sources
from umbra.schema import Shard


def make_mixture(cfg: PretrainConfig, train: Sources, saved: Mapping[str, Any], lanes: int) -> Mixture:
    """The order of a run that goes on from the checkpoint state `saved` (empty: a new run)."""
    offered, batch = train.offered(), cfg.batch.global_
    weights = {name: weight for name, weight in cfg.data.weights.items() if weight}
    kept = mixtures(offered, weights, cfg.data.exclude, saved, batch, lanes)
    return current(kept, offered, cfg.seed, batch, lanes, cfg.accumulation, cfg.data.block_shards)


def keep_scaling(train: Shards, saved: Mapping[str, Any]) -> None:
    """Gives the sources the mean and deviation that the run began with: a change of the mixture changes neither."""
    if "lead_stats" in saved:
        mean, deviation = saved["lead_stats"]
        train.manifest = dataclasses.replace(train.manifest, lead_mean_mv=mean, lead_std_mv=deviation)


def sources_of(order: Order | Mixture) -> dict[str, Taken]:
    """All sources that a mixed run was ever trained on; empty for a run of one data set."""
    return ever(order.history) if isinstance(order, Mixture) else {}


def as_saved(order: Mixture, train: Shards) -> dict[str, Any]:
    """What checkpoints keep of a mixture."""
    return {"mixtures": order.history, "lead_stats": [train.manifest.lead_mean_mv, train.manifest.lead_std_mv]}


def as_recorded(order: Mixture, train: Sources) -> Mixed:
    """What the audit's records say of a mixture."""
    keys = ("fingerprint", "share", "excluded", "epoch", "start")
    _, taken = order.history[-1]
    sources = [{"name": n, "first": train.bases[n], **{key: one[key] for key in keys}} for n, one in taken.items()]
    return {"since": order.first, "sources": sources}  # type: ignore[typeddict-item]


def describe(order: Mixture) -> list[str]:
    """Lines on each mixture of a run: from which step on how much of what."""
    lines = []
    for at, taken in order.history:
        total = sum(one["share"] for one in taken.values())
        for name, one in taken.items():
            share = one["share"] / total
            steps = one["samples"] / (share * order.batch)
            without = f", without {', '.join(one['excluded'])}" if one["excluded"] else ""
            lines.append(
                f"# from step {at}: {100 * share:.4g} % {name}, {one['samples']} ECGs, each once in {steps:.4g} steps, "
                f"in epoch {one['epoch']} after {one['start']}{without}\n"
            )
    return lines


def space_needed(
    cfg: PretrainConfig,
    train: Sources,
    order: Order | Mixture,
    node: Node,
    start: int,
    stop: int,
    kept: Sequence[Shard],
) -> dict[str, tuple[int, int]]:
    """Bytes that each remote source needs at least, and those of all its shards."""
    return {
        name: needed_by_one(train.manifests[name], order, node, start, stop, _of(kept, name, train), name)
        for name, path in named(cfg.data.place).items()
        if is_remote(path)
    }


def open_caches(
    cfg: PretrainConfig,
    train: Sources,
    order: Order | Mixture,
    node: Node,
    start: int,
    stop: int,
    token: str,
    kept: Sequence[Shard],
) -> Caches:
    """The caches of the remote sources, which share `data.cache_gb`."""
    needed = space_needed(cfg, train, order, node, start, stop, kept)
    caches = {}
    for name, gb in shared(cfg.data.cache_gb, needed).items():
        part, remote = train.parts[name], Remote(named(cfg.data.place)[name])
        words = (part.root, part.manifest, order, node, start, stop, gb, token, _of(kept, name, train))
        caches[name] = open_cache(remote, *words, max(4, cfg.data.threads), name)
    return Caches(caches)


def _of(kept: Sequence[Shard], name: str, train: Sources) -> list[Shard]:
    """Those of the shards SOURCE/SHARD that are of one source, as its manifest has them."""
    names = {shard.name for shard in kept}
    return [shard for shard in train.manifests[name].shards if f"{name}/{shard.name}" in names]
