"""The parts of a join: finished data sets that are alike in all that a shard's bytes depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sharding import plan as planning
from sharding.finish import tables
from sharding.plan import Plan
from sharding.verify import samples_file
from umbra.errors import UserError
from umbra.parquet import Table
from umbra.schema import PRIVATE, SAMPLE_COLUMNS, Manifest, read_manifest

# What must be equal, and the key of a build that makes it so.
ALIKE = {
    "rate": ("rate", "{:.9g} Hz"),
    "leads": ("leads", "{}"),
    "samples": ("seconds", "{} samples a window"),
    "resolution_uv": ("resolution_uv", "{:.9g} µV a step"),
}
TREATED = ("high_pass", "min_seconds", "missing_leads")  # may differ, and is told


@dataclass(frozen=True)
class Part:
    """A data set that is joined. `label`: how messages and private tables call it; `plan`: None without `private/`;
    `samples`: its `samples.parquet`, one row group a shard."""

    path: Path
    label: str
    manifest: Manifest
    plan: Plan | None
    samples: Table

    @property
    def leaves(self) -> list[dict[str, Any]]:
        """The built sets in it: name, fingerprint, key_id and public config of each."""
        config, m = self.manifest.config, self.manifest
        name = str(config.get("source", {}).get("name", ""))
        return config.get("parts") or [
            {"name": name, "fingerprint": m.fingerprint, "key_id": m.key_id, "config": config}
        ]

    @property
    def labels(self) -> dict[str, pa.DataType]:
        """Its label columns with their types."""
        return {f.name: f.type for f in self.samples.schema if f.name not in SAMPLE_COLUMNS}


def read(paths: Sequence[str]) -> list[Part]:
    """The parts, each a whole data set by its own manifest (its tars are checked as they are copied).

    Raises `UserError` for one that is not, or that comes twice, also inside another one.
    """
    if twice := [
        path for i, path in enumerate(paths) if Path(path).resolve() in map(Path.resolve, map(Path, paths[:i]))
    ]:
        raise UserError(f"part {twice[0]} is named twice: leave one out")
    found = [_read(path, label) for path, label in zip(paths, _labels(paths))]
    seen: dict[str, Part] = {}
    for part in found:
        for leaf in part.leaves:
            other = seen.setdefault(leaf["fingerprint"], part)
            if other is not part:
                raise UserError(f"{part.path} and {other.path} hold the same data set {leaf['name']}: leave one out")
    return found


def _labels(paths: Sequence[str]) -> list[str]:
    """The last folders of each path, as few as tell all apart."""
    folders = [Path(path).absolute().parts for path in paths]
    for depth in range(1, max(map(len, folders)) + 1):
        labels = ["/".join(names[-depth:]) for names in folders]
        if len(set(labels)) == len(labels):
            break
    return labels


def _read(word: str, label: str) -> Part:
    path = Path(word)
    if not path.is_dir():
        raise UserError(f"part {word} is no folder: name folders of finished data sets (a remote one must be copied)")
    m = read_manifest(path)
    accounted = (path / PRIVATE / planning.PLAN_JSON).is_file() and tables(path)[1].is_file()
    plan = planning.read_plan(path) if accounted else None
    return Part(path, label, m, plan, samples_file(path, m))


def refuse_unlike(parts: Sequence[Part], distinct_patients: bool) -> None:
    """Raises `UserError`, naming two parts and the way out, where parts do not fit together."""
    first = parts[0]
    for part in parts[1:]:
        for name, (key, form) in ALIKE.items():
            one, other = (getattr(p.manifest, name) for p in (first, part))
            if one != other:
                wanted = _as_word(key, first.manifest)
                way = f"build {part.label} again, from its recordings, with {wanted}"
                raise UserError(f"{first.label} has {form.format(one)}, {part.label} {form.format(other)}: {way}")
    label_types(parts)
    keys: dict[str, str] = {}
    for part in parts:
        for leaf in part.leaves:
            keys.setdefault(leaf["key_id"], f"{part.path} (source.name={leaf['name']}, key {leaf['key_id']})")
    if len(keys) > 1 and not distinct_patients:
        one, other = list(keys.values())[:2]
        raise UserError(
            f"{one} and {other} were built under different pseudonym keys, so that a patient of both would not "
            "be recognised and might stand in two splits: build them under one key, or say "
            "distinct_patients=true if no patient is in both"
        )


def _as_word(key: str, manifest: Manifest) -> str:
    seconds = manifest.samples / manifest.rate
    values = {"rate": f"{manifest.rate:g}", "seconds": f"{seconds:g}", "resolution_uv": f"{manifest.resolution_uv:g}"}
    return f"{key}={values.get(key, '[' + ','.join(manifest.leads) + ']')}"


def label_types(parts: Sequence[Part]) -> dict[str, pa.DataType]:
    """All label columns, in the order of the parts. Raises `UserError` for one of numbers here and words there."""
    types: dict[str, pa.DataType] = {}
    origin: dict[str, Part] = {}
    for part in parts:
        for name, kind in part.labels.items():
            known = types.setdefault(name, kind)
            other = origin.setdefault(name, part)
            if known != kind:
                if not (_number(known) and _number(kind)):
                    raise UserError(
                        f"label {name} is {known} in {other.label} and {kind} in {part.label}: build one of them with "
                        f"labels=[...] that leaves it out, or with its column renamed"
                    )
                types[name] = pa.float64()
    return types


def _number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def notes(parts: Sequence[Part]) -> list[str]:
    """Lines on what the parts do not share, for the user to judge."""
    lines = []
    for name in label_types(parts):
        if without := [part.label for part in parts if name not in part.labels]:
            lines.append(f"label {name} is empty for the samples of {', '.join(without)}, which have none")
    leaves = [leaf for part in parts for leaf in part.leaves]
    for key in TREATED:
        values = {_shown(leaf["config"].get(key)): leaf["name"] for leaf in reversed(leaves) if key in leaf["config"]}
        if len(values) > 1:
            lines.append(f"parts were built with different {key}: {', '.join(f'{v} ({n})' for v, n in values.items())}")
    names = {leaf["name"] for leaf in leaves}
    if len(names) > 1:
        lines.append(
            f"a patient who is in two sources ({', '.join(sorted(names))}) counts as two patients: pseudonyms depend "
            "on source.name"
        )
    if bare := [part.label for part in parts if part.plan is None]:
        lines.append(f"{', '.join(bare)} came without private/: what its build rejected is not listed")
    return lines
