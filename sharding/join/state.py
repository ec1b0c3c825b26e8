"""A join on disk: `private/plan.json` as a build has it, `private/join.json` with the parts and where their shards go,
`private/moves.parquet` with the patients who leave a shard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.join import parts as joined_parts
from sharding.join.parts import Part
from sharding.join.place import Base, Placed
from sharding.plan import Plan
from umbra.files import atomic, write_text
from umbra.schema import JOIN, PRIVATE

MOVES = "moves.parquet"
SHOWN = 3


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
    _write(output, parts, [dataclasses.asdict(base) for base in placed.bases])


def write_paths(output: Path, parts: Sequence[Part]) -> None:
    """The parts may have moved since the join began."""
    _write(output, parts, json.loads((output / PRIVATE / JOIN).read_text())["bases"])


def _write(output: Path, parts: Sequence[Part], bases: list[dict[str, Any]]) -> None:
    paths = [str(part.path.absolute()) for part in parts]
    write_text(output / PRIVATE / JOIN, json.dumps({"parts": paths, "bases": bases}) + "\n")


def read(output: Path) -> State:
    path = output / PRIVATE / JOIN
    return _read(output, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(output: Path, time: int) -> State:
    """Once a process: the manifests of large parts take a while."""
    values = json.loads((output / PRIVATE / JOIN).read_text())
    bases = [Base(**base) for base in values["bases"]]
    return State(joined_parts.read(values["parts"]), bases, pq.read_table(output / PRIVATE / MOVES))


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
