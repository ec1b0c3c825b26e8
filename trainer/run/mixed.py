"""What is particular to a run that mixes data sets: its order, records and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import PretrainConfig
from trainer.data.audit_records import Mixed
from trainer.data.mixture import Mixture
from trainer.data.mixtures import Taken, current, ever, mixtures
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.sources import Sources


def make_mixture(cfg: PretrainConfig, train: Sources, saved: Mapping[str, Any], lanes: int) -> Mixture:
    """The order of a run that goes on from the checkpoint state `saved` (empty: a new run)."""
    offered, batch = train.offered(), cfg.batch.global_
    kept = mixtures(offered, cfg.data.weights_in_use, cfg.data.exclude, saved, batch, lanes)
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


def describe(order: Mixture, train: Shards, heldout: Shards | None, patients: NDArray[np.int64]) -> list[str]:
    """Lines on each mixture of a run, from which step on how much of what, and on held-out patients that are seen.

    `patients`: the code of each row.
    """
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
    return lines + ([] if heldout is None else _describe_shared(train, heldout, patients))


def _describe_shared(train: Shards, heldout: Shards, patients: NDArray[np.int64]) -> list[str]:
    seen, held = (patients[shards.rows_of(np.arange(shards.count))] for shards in (train, heldout))
    if not (shared := len(np.intersect1d(seen, held))):
        return []
    return [
        f"# {shared} patients of the held-out ECGs are in the train split of another source: heldout/loss is too good "
        "for them (python -m sharding join keeps them apart)\n"
    ]
