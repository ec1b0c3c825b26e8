"""A split of several data sets as one array of samples, without a copy: `Shards` whose files lie in several folders.

Samples, shards and rows of `samples.parquet` are numbered through, one source after the other. A shard is called
SOURCE/SHARD.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.config import DataConfig
from trainer.data.metadata import Partnering, Rows
from trainer.data.mixtures import Offered
from trainer.data.remote.fetch import is_remote
from trainer.data.remote.store import local_root
from trainer.data.shards import OpenShard, Shards
from umbra.errors import UserError, naming
from umbra.schema import Manifest, read_manifest

ALIKE = ("rate", "samples", "leads", "resolution_uv")


class Sources(Shards):
    """The samples of one split of several data sets; `parts`: those that have the split, in the order of `manifests`.

    `manifest` is what all have in common; its mean and standard deviation are those of a mixture by `weights`.
    """

    def __init__(
        self, parts: Mapping[str, Shards], manifests: Mapping[str, Manifest], split: str, weights: Mapping[str, float]
    ) -> None:
        self.parts, self.split, self.manifests = dict(parts), split, dict(manifests)
        self.weights = dict(weights)
        self.shards = [dataclasses.replace(s, name=f"{n}/{s.name}") for n, part in parts.items() for s in part.shards]
        self.counts = tuple(shard.samples for shard in self.shards)
        self.count = sum(self.counts)
        self.manifest = in_common(manifests, weights)
        self.resolution_mv = self.manifest.resolution_uv / 1000
        one = next(iter(parts.values()))
        self.shape, self._item = one.shape, one._item
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._held = {}
        self._firsts = [0, *itertools.accumulate(len(part.shards) for part in parts.values())]  # shards of each part
        self._begins = np.cumsum([0, *(part.count for part in parts.values())])  # its samples
        rows = [0, *itertools.accumulate(sum(s.samples for s in m.shards) for m in manifests.values())]
        self.bases = dict(zip(manifests, rows))  # rows of each data set
        self._bases = np.array([self.bases[name] for name in parts])
        self._offsets = np.array([self.bases[name] + part.rows.start for name, part in parts.items()])

    def rows_of(self, indices: NDArray[np.int64]) -> Rows:
        part = np.searchsorted(self._begins, indices, side="right") - 1
        rows: Rows = indices - self._begins[part] + self._offsets[part]
        return rows

    def indices_of(self, rows: Rows) -> NDArray[np.int64]:
        part = np.searchsorted(self._bases, rows, side="right") - 1
        indices: NDArray[np.int64] = rows - self._offsets[part] + self._begins[part]
        return indices

    def some(self, count: int) -> NDArray[np.int64]:
        """`count` samples in proportion to those of each source, its first ones."""
        ends = self._begins * count // max(self.count, 1)
        return np.concatenate([np.arange(b - a) + begin for a, b, begin in zip(ends, ends[1:], self._begins)])

    def patients(self) -> NDArray[np.int64]:
        """Codes of the rows of all sources; equal ones are of one patient, where two sources share a key and a name."""
        keys = [manifest.patient_keys for manifest in self.manifests.values()]
        codes = []
        for n, name in enumerate(self.manifests):
            alike = next(m for m in range(n + 1) if m == n or keys[m] & keys[n])
            codes.append(self.parts[name].patients() ^ _stamp(alike))
        return np.concatenate(codes)

    def offered(self) -> dict[str, Offered]:
        """What a mixture can take of each source."""
        found = {}
        for name, part in self.parts.items():
            patients = len(np.unique(part.patients()[part.rows_of(np.arange(part.count))]))
            shards = {shard.name: shard.samples for shard in part.shards}
            found[name] = Offered(part.manifest.fingerprint, part.manifest.key_id, patients, shards)
        return found

    def table(self) -> pa.Table:
        return pa.concat_tables([part.table() for part in self.parts.values()], promote_options="permissive")

    def metadata(self, folder: str | Path) -> MetadataOfSources:
        return MetadataOfSources([part.metadata(folder) for part in self.parts.values()], self._bases)

    def part_of(self, shard: int) -> tuple[str, int]:
        """The source of a shard, and its number there."""
        part = int(np.searchsorted(self._firsts, shard, side="right")) - 1
        return list(self.parts)[part], shard - self._firsts[part]

    def _open(self, shard: int) -> OpenShard:
        name, number = self.part_of(shard)
        return self.parts[name]._open(number)

    def _path(self, shard: int) -> Path:
        name, number = self.part_of(shard)
        return self.parts[name]._path(number)


def opened(data: DataConfig, split: str, later: bool | None = None) -> Shards:
    """The samples of a split of `data.path`; of several sources, of those that have it.

    `later`: whether the shards come later (None: those of a remote data set do). Raises `UserError` as `local_root`,
    `Shards` and `in_common` do.
    """
    place = data.place
    if isinstance(place, str):
        remote = is_remote(place) if later is None else later
        return Shards(local_root(place, data.cache), split, remote, data.exclude if split == "train" else ())
    roots = {name: local_root(path, data.cache) for name, path in place.items()}
    manifests = {name: read_manifest(root) for name, root in roots.items()}
    counts = {name: sum(s.samples for s in m.of_split("train")) for name, m in manifests.items()}
    given = data.weights_in_use
    weights = {name: given.get(name, 1) if given else count for name, count in counts.items()}
    in_common(manifests, weights)
    parts = {}
    for name, root in roots.items():
        if split == "train" or manifests[name].of_split(split):
            with naming(f"data.path.{name}"):
                out = [shard.removeprefix(f"{name}/") for shard in data.exclude if shard.startswith(f"{name}/")]
                remote = is_remote(place[name]) if later is None else later
                parts[name] = Shards(root, split, remote, out)
    if not parts:
        raise UserError(
            f"no source of data.path has a sample in split '{split}'; build one with a share for that split"
        )
    return Sources(parts, manifests, split, weights)


@dataclasses.dataclass(frozen=True)
class MetadataOfSources:
    """The `Metadata` of several sources, whose rows begin at `bases`."""

    parts: Sequence[Partnering]
    bases: NDArray[np.int64]

    def prepare(self) -> None:
        for part in self.parts:
            part.prepare()

    def partners(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """For each row another one of the same patient in its source, as `Metadata.partners`."""
        result, of = np.empty_like(rows), np.searchsorted(self.bases, rows, side="right") - 1
        for n, part in enumerate(self.parts):
            mine = of == n
            result[mine] = part.partners(rows[mine] - self.bases[n], seed, epoch) + self.bases[n]
        return result


def in_common(manifests: Mapping[str, Manifest], weights: Mapping[str, float]) -> Manifest:
    """What stands for the manifest of a mixture; the mean is that of its samples, the variance that within and between
    its sources.

    Raises `UserError` for two sources that differ in rate, length, leads or resolution, and for one data set twice.
    """
    first, one = next(iter(manifests.items()))
    for name, other in manifests.items():
        for own, its in ((_said(one, key), _said(other, key)) for key in ALIKE):
            if own != its:
                raise UserError(
                    f"data.path: {first} has {own}, {name} has {its}, and the sources of a run must be alike: build "
                    f"{name} again with {own} (python -m sharding build), or {first} with {its}"
                )
        twice = next((n for n, m in manifests.items() if m.fingerprint == other.fingerprint), name)
        if twice != name:
            raise UserError(f"data.path: {twice} and {name} are one data set ({other.fingerprint}): leave one out")
    share = np.array([weights[name] for name in manifests], float)[:, None]
    share /= share.sum()
    mean, deviation = (
        np.array([getattr(m, key) for m in manifests.values()]) for key in ("lead_mean_mv", "lead_std_mv")
    )
    pooled = (share * mean).sum(0)
    variance = (share * (deviation**2 + (mean - pooled) ** 2)).sum(0)
    return dataclasses.replace(
        one,
        fingerprint="+".join(m.fingerprint for m in manifests.values()),
        key_id="+".join(dict.fromkeys(m.key_id for m in manifests.values())),
        shards=[dataclasses.replace(s, name=f"{name}/{s.name}") for name, m in manifests.items() for s in m.shards],
        lead_mean_mv=pooled.tolist(),
        lead_std_mv=np.sqrt(variance).tolist(),
        patient_ids=all(m.patient_ids for m in manifests.values()),
        content_hash="",
    )


def _said(manifest: Manifest, key: str) -> str:
    """A property of a data set as the key of the build that sets it."""
    if key == "samples":
        return f"seconds={manifest.samples / manifest.rate:g}"
    value = getattr(manifest, key)
    return f"{key}=[{','.join(value)}]" if isinstance(value, list) else f"{key}={value:g}"


def _stamp(number: int) -> np.int64:
    """What tells the patients of one group of sources from those of another; 0 for the first."""
    return np.uint64(number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF).astype(np.int64)
