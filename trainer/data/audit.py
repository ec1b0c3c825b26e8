"""Checks from a run's own records that its epochs were complete.

    python -m trainer.data.audit RUN

With `data.audit=true` each process writes the rows of `samples.parquet` that it trained on, step by step, to
RUN/audit/ (`audit_records`). The check uses only these records and the manifest, nothing of `order.py`. Steps that were
lost in a crash and repeated by a later start count once. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from trainer.data import audit_mixture
from trainer.data.audit_records import AT_ONCE, FOLDER, Stretch, history_of
from trainer.data.audit_verdict import Epoch, Verdict, describe, some
from umbra.config import command
from umbra.errors import UserError
from umbra.files import write_text
from umbra.schema import MANIFEST, Manifest, read_manifest

REPORT = "report.json"


def judge(run: str | Path) -> Verdict:
    """Checks the records of a run. Raises `UserError` if there are none."""
    folder = Path(run) / FOLDER
    if any(folder.glob(f"*/{MANIFEST}")):
        return audit_mixture.judge(Path(run))
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no records: train with data.audit=true")
    manifest = read_manifest(folder)
    problems: list[str] = []
    history, struck = history_of(Path(run), manifest.fingerprint, problems)
    parts: dict[int, list[Stretch]] = defaultdict(list)
    for stretch in history:
        for number, part in _by_epoch(stretch, problems):
            parts[number].append(part)
    epochs = [_judge_epoch(manifest, number, parts[number], problems) for number in sorted(parts)]
    _judge_lengths(epochs, parts, problems)
    return Verdict(epochs, struck, problems)


def _by_epoch(stretch: Stretch, problems: list[str]) -> Iterator[tuple[int, Stretch]]:
    """A stretch, split where the epoch changes."""
    inside = slice(stretch.first - stretch.begin, stretch.stop - stretch.begin)
    epochs = np.stack([records["epoch"][inside] for records in stretch.records])
    for step in np.flatnonzero((epochs != epochs[0]).any(axis=0)):
        problems.append(f"step {stretch.first + step}: the processes disagree about its epoch")
    cuts = [0, *(np.flatnonzero(np.diff(epochs[0])) + 1).tolist(), epochs.shape[1]]
    for a, b in zip(cuts, cuts[1:]):  # noqa: RUF007
        part = Stretch(stretch.begin, stretch.first + a, stretch.first + b, stretch.head, stretch.records)
        yield int(epochs[0, a]), part


def _judge_epoch(manifest: Manifest, number: int, parts: list[Stretch], problems: list[str]) -> Epoch:
    """Counts how often each row was seen; reports rows outside the training split, excluded ones and repeats."""
    head, before = parts[0].head, len(problems)
    where = f"epoch {number}"
    for part in parts:
        if part.head["excluded"] != head["excluded"] or part.head["batch"] != head["batch"]:
            problems.append(f"{where}: data.exclude or the global batch changed within it, at step {part.first}")
        if part.head["share"] * part.head["world"] != part.head["batch"]:
            problems.append(f"{where}: {part.head['world']} processes had {part.head['share']} samples each")
    times = np.zeros(sum(shard.samples for shard in manifest.shards), np.int64)
    for part in parts:
        step = max(1, AT_ONCE // max(part.head["batch"], 1))
        for first in range(part.first, part.stop, step):
            rows = part.rows(first, min(first + step, part.stop)).ravel()
            if rows.size and (rows.max() >= len(times) or rows.min() < 0):
                problems.append(f"{where}, steps {first} on: row {int(rows.max())} is not in the data set")
                rows = rows[(rows < len(times)) & (rows >= 0)]
            times += np.bincount(rows, minlength=len(times))
    due = np.repeat([s.split == "train" and s.name not in head["excluded"] for s in manifest.shards], _counts(manifest))
    for wrong, words in (
        (np.flatnonzero((times > 0) & ~due), "not of the training split, or excluded"),
        (np.flatnonzero(times > 1), "seen more than once"),
    ):
        if len(wrong):
            problems.append(
                f"{where}: {len(wrong)} samples were {words}: {some(wrong.tolist())} ({_shard(manifest, wrong[0])})"
            )
    steps, whole = sum(p.stop - p.first for p in parts), int(due.sum()) // head["batch"]
    if steps > whole:
        problems.append(f"{where} has {steps} steps, but {int(due.sum())} samples give {whole}")
    state = "wrong" if len(problems) > before else "complete" if steps == whole else "unfinished"
    remainder = np.flatnonzero(due & (times == 0)).tolist()
    return Epoch(number, parts[0].first, parts[-1].stop - 1, whole, int((times > 0).sum()), state, remainder)


def _judge_lengths(epochs: list[Epoch], parts: dict[int, list[Stretch]], problems: list[str]) -> None:
    """Only the last epoch may be unfinished, or one that a change of data.exclude cut short."""
    for epoch, following in zip(epochs, epochs[1:]):  # noqa: RUF007
        if following.number != epoch.number + 1 or following.first != epoch.last + 1:
            problems.append(
                f"epoch {following.number} (from step {following.first}) follows epoch {epoch.number} (to {epoch.last})"
            )
        if epoch.state == "unfinished":
            excluded = [parts[e.number][0].head["excluded"] for e in (epoch, following)]
            epoch.state = "cut" if excluded[0] != excluded[1] else "wrong"
            if epoch.state == "wrong":
                problems.append(
                    f"epoch {epoch.number} ended after {epoch.last - epoch.first + 1} of {epoch.due} steps, and the "
                    "next began"
                )
    if epochs and epochs[0].number != 0:
        problems.append(f"the first epoch in the records is {epochs[0].number}")


def _counts(manifest: Manifest) -> list[int]:
    return [shard.samples for shard in manifest.shards]


def _shard(manifest: Manifest, row: int) -> str:
    return manifest.shards[int(np.searchsorted(np.cumsum(_counts(manifest)), row, "right"))].name


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        raise UserError("give one run directory: python -m trainer.data.audit RUN")
    verdict = judge(argv[0])
    for epoch in verdict.epochs:
        print(describe(epoch))
    if verdict.struck:
        print(f"discarded: {verdict.struck} steps that were in no checkpoint and were repeated on resume")
    write_text(Path(argv[0]) / FOLDER / REPORT, json.dumps(asdict(verdict), indent=1))
    for problem in verdict.problems:
        print(f"error: {problem}", file=sys.stderr)
    if not verdict.epochs and not verdict.problems:
        raise UserError(f"{argv[0]} has no recorded step: nothing to check; was it run with data.audit=true?")
    done = sum(epoch.state == "complete" for epoch in verdict.epochs)
    if not verdict.problems:
        of = f" of {len(names)} sources" if (names := {e.source for e in verdict.epochs} - {""}) else ""
        print(f"proven: {done} complete epochs{of}, no sample twice in any epoch, none from a held-out split")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    command(main)
