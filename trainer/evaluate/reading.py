"""Reads a task: the labels of the records of a sharded data set, and what is left out of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.data.shards import Shards
from trainer.evaluate import target
from trainer.evaluate.scores import scorable
from trainer.evaluate.target import is_list
from trainer.evaluate.task import Labelled, Task, TaskConfig
from umbra.errors import UserError, near_miss
from umbra.parquet import Table, open_samples
from umbra.schema import SPLITS, Manifest


def read_task(config: TaskConfig) -> Task:
    """Reads the targets of the three splits from samples.parquet.

    Classes without train examples and labels that are the same in all train records are dropped (and noted); so are
    records without a value. Raises `UserError` for an unknown label column, a column of another kind, a missing
    split, a target that does not vary, or a val or test split in which nothing can be scored.
    """
    with_name = f"task '{config.name}'"
    splits = {split: Shards(config.data, split) for split in SPLITS}
    table = _columns(config, next(iter(splits.values())))
    tables = {s: table.slice(shards.rows.start, shards.count) for s, shards in splits.items()}
    names, targets = target.read(config, tables, with_name)
    used, notes = target.usable(config, names, targets["train"], with_name)
    parts = {}
    for split, shards in splits.items():
        whole = targets[split][:, used]
        kept = target.kept(config, whole)
        known = whole[kept].astype(np.float32)
        patient = tables[split].column("patient").to_numpy()[kept]
        parts[split] = Labelled(shards, np.flatnonzero(kept), known, patient)
        if left := int((~kept).sum()):
            notes.append(f"{left} of {len(kept)} {split} records have {target.LEFT_OUT[config.kind]}")
        if split != "train":
            notes += _check_scored(config, [names[k] for k in used], known, split)
    return Task(config.name, config.kind, [names[k] for k in used], **parts, notes=notes)


def read_labels(config: TaskConfig, shards: Shards) -> Labelled:
    """The records of one split, with what varies over them. Raises `UserError` as `read_task` does."""
    with_name = f"task '{config.name}'"
    table = _columns(config, shards).slice(shards.rows.start, shards.count)
    names, targets = target.read(config, {shards.split: table}, with_name)
    whole = targets[shards.split][:, target.usable(config, names, targets[shards.split], with_name, shards.split)[0]]
    kept = target.kept(config, whole)
    return Labelled(
        shards, np.flatnonzero(kept), whole[kept].astype(np.float32), table.column("patient").to_numpy()[kept]
    )


def _columns(config: TaskConfig, shards: Shards) -> pa.Table:
    """The label columns and the patients of all rows."""
    samples = open_samples(shards.root, shards.manifest)
    _check_order(samples, shards.manifest)
    if twice := [name for name in config.columns if config.columns.count(name) > 1]:
        raise UserError(f"task '{config.name}': columns has '{twice[0]}' twice: leave one out")
    for name in config.used_columns:
        if name not in samples.names:
            several = f"; several columns are columns={name}" if name.startswith("[") or "," in name else ""
            raise UserError(
                f"task '{config.name}': label column '{name}' is not in {config.data}/samples.parquet"
                f"{several or near_miss(name, samples.names)}"
            )
        kind = samples.schema.field(name).type
        if pa.types.is_nested(kind) and (not is_list(kind) or pa.types.is_nested(kind.value_type)):
            raise UserError(f"task '{config.name}': column '{name}' holds neither words nor numbers nor lists of them")
    return samples.read([*dict.fromkeys([*config.used_columns, "patient"])])


def _check_order(samples: Table, manifest: Manifest) -> None:
    """Raises `UserError` if the rows are not in the order of the shards, as after a merge with labels of one's own."""
    if not {"shard", "index"} <= set(samples.names):
        return
    counts = [shard.samples for shard in manifest.shards]
    wanted = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])
    found = samples.read(["shard", "index"])
    if not all(np.array_equal(found.column(name), of) for name, of in zip(("shard", "index"), wanted)):
        raise UserError(
            f"{samples.path}: its rows are not in the order of the shards, labels would be those of other ECGs: sort "
            "them by the columns shard and index"
        )


def _check_scored(config: TaskConfig, names: list[str], known: np.ndarray, split: str) -> list[str]:
    """Notes on classes without examples in this split. Raises `UserError` if nothing can be scored."""
    if config.kind == "number":
        if len(known) < 2 or (known == known[0]).all(0).any():
            raise UserError(
                f"task '{config.name}': the {split} split has fewer than two different values of {', '.join(names)}"
            )
        return []
    if not scorable(known):
        raise UserError(
            f"task '{config.name}': the {split} split has records of fewer than two classes"
            if config.kind == "classes"
            else f"task '{config.name}': no label has both positive and negative records in the {split} split"
        )
    notes = [f"class {n} has no {split} examples" for n, count in zip(names, known.sum(0)) if not count]
    return notes + [f"all {split} records have {n}" for n, count in zip(names, known.sum(0)) if count == len(known)]
