"""A join on disk: `private/plan.json` as a build has it, `private/join.json` with the parts and where their shards go,
`private/moves.parquet` with the patients who leave a shard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.join import parts as joined_parts
from sharding.join.parts import Part
from sharding.join.place import Base, Placed
from sharding.plan import Plan
from umbra.errors import UserError
from umbra.files import atomic, damaged, read_json_as, write_text
from umbra.parquet import Table
from umbra.schema import JOIN, PRIVATE

MOVES = "moves.parquet"
AGAIN = "delete the output and join again"
SHOWN = 3


@dataclass(frozen=True)
class BegunPart:
    """A part when its join began; `private`: whether it had its private tables."""

    path: str
    label: str
    private: bool


@dataclass(frozen=True)
class Begun:
    """The content of `private/join.json`."""

    parts: list[BegunPart]
    bases: list[Base]


@dataclass(frozen=True)
class State:
    """What a worker needs to write a joined shard."""

    parts: list[Part]
    bases: list[Base]
    moves: pa.Table


def write(output: Path, parts: Sequence[Part], placed: Placed) -> None:
    left = [placed.bases[place] for place in placed.moves.column("place").to_pylist()]
    names = {
        "part": pa.array([parts[base.part].label for base in left], pa.string()),
        "shard": pa.array([parts[base.part].manifest.shards[base.number].name for base in left], pa.string()),
    }
    moves = {name: placed.moves.column(name) for name in placed.moves.column_names}
    with atomic(output / PRIVATE / MOVES) as path:
        pq.write_table(pa.table(moves | names), path)
    _write(output, parts, placed.bases)


def resumed(output: Path, parts: Sequence[Part]) -> list[Part]:
    """The parts, which may have moved since the join began, with the labels of then; notes where they are now.

    Raises `UserError` if one has lost its `private/` since, or if another version began the join.
    """
    begun = _begun(output)
    if len(begun.parts) != len(parts):
        raise damaged(output / PRIVATE / JOIN, f"it has {len(begun.parts)} of {len(parts)} parts", AGAIN)
    found = _as_begun(parts, begun)
    _write(output, found, begun.bases)
    return found


def _as_begun(parts: Sequence[Part], begun: Begun) -> list[Part]:
    found = []
    for part, then in zip(parts, begun.parts):
        if then.private and part.plan is None:
            raise UserError(
                f"part {part.path} has lost its {PRIVATE}/ folder, or tables in it, since this join began: put them "
                "back, or delete the output and join again"
            )
        found.append(replace(part, label=then.label, plan=part.plan if then.private else None))
    return found


def _write(output: Path, parts: Sequence[Part], bases: list[Base]) -> None:
    begun = Begun([BegunPart(str(p.path.absolute()), p.label, p.plan is not None) for p in parts], bases)
    write_text(output / PRIVATE / JOIN, json.dumps(dataclasses.asdict(begun)) + "\n")


def _begun(output: Path) -> Begun:
    path = output / PRIVATE / JOIN
    begun = read_json_as(Begun, path, AGAIN)
    if any(not 0 <= base.part < len(begun.parts) for base in begun.bases):
        raise damaged(path, "it names a part that it does not have", AGAIN)
    return begun


def read(output: Path) -> State:
    path = output / PRIVATE / JOIN
    return _read(output, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(output: Path, time: int) -> State:
    """Once a process: the manifests of large parts take a while."""
    begun = _begun(output)
    parts = joined_parts.read([part.path for part in begun.parts])
    return State(_as_begun(parts, begun), begun.bases, Table(output / PRIVATE / MOVES, AGAIN).read())


def draw_up(parts: Sequence[Part], placed: Placed) -> Plan:
    """The plan, of one "record" a sample; `records` counts those that the parts account for."""
    manifests = [part.manifest for part in parts]
    records = [part.plan.records if part.plan else sum(s.samples for s in part.manifest.shards) for part in parts]
    keys = sorted({leaf["key_id"] for part in parts for leaf in part.leaves})
    return Plan(
        content={"join": [m.fingerprint for m in manifests], "leads": manifests[0].leads},
        table=[],
        meta_bytes=max(m.meta_bytes for m in manifests),
        key_id="+".join(keys),
        patient_ids=all(m.patient_ids for m in manifests),
        shards=placed.shards,
        records=sum(records),
        windows=sum(s.windows for s in placed.shards),
        codes_left_out=0,
        notes=[*_moves_note(placed), *joined_parts.notes(parts)],
    )


def _moves_note(placed: Placed) -> list[str]:
    """How many patients stand in several parts, and how many of them in several splits."""
    moves = placed.moves
    if not len(moves):
        return []
    count = pc.count_distinct(moves.column("patient")).as_py()
    lines = [
        f"{count:,} patients stand in several parts and are kept together: private/{MOVES} lists them (if they are "
        "different people, build one part under another source.name)"
    ]
    torn = moves.filter(pc.not_equal(moves.column("split"), moves.column("now")))
    if len(torn):
        patients = torn.column("patient").unique()
        ways = torn.group_by(["split", "now"]).aggregate([("patient", "count_distinct")]).to_pylist()
        listed = ", ".join(sorted(f"{w['patient_count_distinct']:,} from {w['split']} to {w['now']}" for w in ways))
        names = ", ".join(map(str, patients[:SHOWN].to_pylist())) + ", ..." * (len(patients) > SHOWN)
        lines.append(
            f"{len(patients):,} of them stood in different splits and are now in one, test before val before train "
            f"({listed}): {names}"
        )
    return lines
