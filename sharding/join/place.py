"""Which shard of a joined set each sample goes to: a pure function of the parts' tables.

A part's shards stay whole and in order, under new names. Only a patient who stands in several of them is moved: to the
first one of his strictest split (test before val before train), so that nothing that was held out is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sharding.join.parts import Part
from sharding.plan import ShardPlan
from umbra.schema import SPLITS

NONE = -1


@dataclass(frozen=True)
class Base:
    """A planned shard of a part: its `number` in the manifest (NONE: no window was kept) and its row group in
    `private/records.parquet` (NONE: no such table)."""

    part: int
    number: int
    group: int
    split: str


@dataclass(frozen=True)
class Placed:
    """`bases[i]` becomes the joined shard `shards[i]`, but for `moves`: one row a patient and shard that he leaves."""

    bases: list[Base]
    shards: list[ShardPlan]
    moves: pa.Table


def bases(parts: Sequence[Part]) -> list[Base]:
    """All planned shards of the parts, split by split, within one in the parts' order."""
    found = []
    for i, part in enumerate(parts):
        number = {shard.name: n for n, shard in enumerate(part.manifest.shards)}
        if part.plan is None:
            found += [Base(i, n, NONE, shard.split) for n, shard in enumerate(part.manifest.shards)]
        else:
            found += [Base(i, number.get(s.name, NONE), s.ordinal, s.split) for s in part.plan.shards]
    return sorted(found, key=lambda base: SPLITS.index(base.split))  # stable


def placed(parts: Sequence[Part]) -> Placed:
    """Reads who is in which shard, and places all."""
    order = bases(parts)
    place = {(base.part, base.number): i for i, base in enumerate(order) if base.number != NONE}
    patients, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for i, part in enumerate(parts):
        rows = part.samples.read(columns=["shard", "patient"])
        of_number = np.array([place[i, n] for n in range(len(part.manifest.shards))], np.int64)
        patients.append(rows.column("patient").to_numpy())
        places.append(of_number[rows.column("shard").to_numpy()])
    moves = moved(np.concatenate(patients), np.concatenate(places), [base.split for base in order])
    windows = np.bincount(np.concatenate(places), minlength=len(order))
    np.subtract.at(windows, moves.column("place").to_numpy(), moves.column("windows").to_numpy())
    np.add.at(windows, moves.column("home").to_numpy(), moves.column("windows").to_numpy())
    return Placed(order, _shards(order, windows.tolist()), moves)


def moved(patients: NDArray[np.int64], places: NDArray[np.int64], splits: Sequence[str]) -> pa.Table:
    """One row for each patient and shard that he must leave: patient, windows, place, home, split, now.

    `patients`, `places` [samples]: who each sample is of and which shard it is in, of which `splits` are the splits.
    """
    order = np.lexsort((places, patients))
    who, where = patients[order], places[order]
    begins = np.flatnonzero(np.concatenate([[True], (who[1:] != who[:-1]) | (where[1:] != where[:-1])])[: len(who)])
    windows = np.diff(np.append(begins, len(who)))
    who, where = who[begins], where[begins]
    rank = np.array([SPLITS.index(split) for split in splits], np.int64)[where] if len(where) else where
    order = np.lexsort((where, -rank, who))  # each patient's home comes first
    who, where, windows = who[order], where[order], windows[order]
    first = np.concatenate([[True], who[1:] != who[:-1]])[: len(who)]
    home = where[np.maximum.accumulate(np.where(first, np.arange(len(who)), 0))]
    leaves = ~first
    names = np.array(splits, object)
    return pa.table(
        {
            "patient": pa.array(who[leaves], pa.int64()),
            "windows": pa.array(windows[leaves], pa.int64()),
            "place": pa.array(where[leaves], pa.int64()),
            "home": pa.array(home[leaves], pa.int64()),
            "split": pa.array(names[where[leaves]], pa.string()),
            "now": pa.array(names[home[leaves]], pa.string()),
        }
    )


def _shards(order: Sequence[Base], windows: Sequence[int]) -> list[ShardPlan]:
    shards: list[ShardPlan] = []
    begun = dict.fromkeys(SPLITS, 0)
    for ordinal, (base, count) in enumerate(zip(order, windows)):
        name = f"{base.split}-{begun[base.split]:06d}.tar"
        begun[base.split] += 1
        shards.append(ShardPlan(name, base.split, ordinal, count, count))
    return shards
