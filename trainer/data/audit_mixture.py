"""The audit of a run that mixes data sets: from its records and the manifests alone, source by source.

Each source has epochs of its own. That each of them has every sample once is shown by counting: at the end of any step,
with n samples of a source taken, each of its N training samples was taken n // N times, or once more. What a step takes
besides at the end of an epoch is of the next one. And at the end of any step the counts are within one sample of the
weights, since the step that the mixture began at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.audit_records import AT_ONCE, FOLDER, Mixed, SourceOf, Stretch, history_of
from trainer.data.audit_verdict import Epoch, Verdict, some
from umbra.errors import UserError
from umbra.files import damaged
from umbra.schema import Manifest, read_manifest
from umbra.typed import typed

Counts = NDArray[np.int64]


@dataclass
class _Stream:
    """One source: how often each row was taken in its epoch `number`, which began in step `first`."""

    name: str
    about: SourceOf
    manifest: Manifest
    number: int = 0
    first: int = 0
    given: int = 0  # samples of the epoch
    since: int = 0  # samples since the mixture began
    wrong: bool = False
    times: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    due: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def begin(self, number: int, step: int) -> None:
        """The first epoch of this source, or of these shards of it."""
        shards, counts = self.manifest.shards, [shard.samples for shard in self.manifest.shards]
        out = self.about["excluded"]
        self.due = np.repeat([s.split == "train" and s.name not in out for s in shards], counts)
        self.times = np.zeros(len(self.due), np.int64)
        self.number, self.first, self.given, self.wrong = number, step, 0, False

    @property
    def rows(self) -> range:
        return range(self.about["first"], self.about["first"] + len(self.times))

    @property
    def size(self) -> int:
        return int(self.due.sum())

    def epoch(self, last: int, state: str) -> Epoch:
        seen = int((self.times > 0).sum())
        left = [] if state == "complete" else np.flatnonzero(self.due & (self.times == 0)).tolist()
        state = "wrong" if self.wrong else state
        return Epoch(self.number, self.first, last, self.size, seen, state, left, self.name)


def judge(run: Path) -> Verdict:
    """Checks the records of a run that mixes data sets. Raises `UserError` for a record that cannot be one."""
    problems: list[str] = []
    history, struck = history_of(run, "", problems)
    streams: dict[str, _Stream] = {}
    epochs: list[Epoch] = []
    mixed: Mixed | None = None
    for stretch in history:
        now = _mixed_of(stretch.head, run)
        if mixed is None or now != mixed:
            epochs += _change(run, streams, now, stretch.first, problems)
        mixed = now
        if stretch.head["share"] * stretch.head["world"] != stretch.head["batch"]:
            problems.append(f"step {stretch.first}: {stretch.head['world']} processes had {stretch.head['share']} each")
        for first, rows in _steps(stretch):
            epochs += _play(streams, mixed, first, rows, problems)
    last = history[-1].stop - 1 if history else 0
    names = [source["name"] for source in mixed["sources"]] if mixed else []
    epochs += [streams[name].epoch(last, "unfinished") for name in names if streams[name].given]
    return Verdict(sorted(epochs, key=lambda e: (e.first, e.source, e.number)), struck, problems)


def _mixed_of(head: dict[str, Any], run: Path) -> Mixed:
    try:
        return typed(Mixed, {key: head.get(key) for key in ("since", "sources")})
    except ValueError as error:
        raise damaged(run / FOLDER, error, "a run of one data set has no folders in it") from error


def _steps(stretch: Stretch) -> Iterator[tuple[int, NDArray]]:
    """(first step, rows [steps, global batch])"""
    at_once = max(1, AT_ONCE // max(stretch.head["batch"], 1))
    for first in range(stretch.first, stretch.stop, at_once):
        rows = stretch.rows(first, min(first + at_once, stretch.stop)).astype(np.int64)
        yield first, rows.transpose(1, 0, 2).reshape(rows.shape[1], -1)


def _change(run: Path, streams: dict[str, _Stream], now: Mixed, step: int, problems: list[str]) -> list[Epoch]:
    """Begins another mixture at a step; returns the epochs that this cuts short."""
    ended = []
    if now["since"] != step:
        problems.append(f"step {step}: its mixture is said to have begun at step {now['since']}")
    names = {source["name"]: source for source in now["sources"]}
    for name, stream in streams.items():
        about = names.get(name)
        if stream.given and (about is None or about["excluded"] != stream.about["excluded"]):
            ended.append(stream.epoch(step - 1, "cut"))
            stream.begin(stream.number + 1, step)
    for name, about in names.items():
        manifest = read_manifest(run / FOLDER / name)
        if manifest.fingerprint != about["fingerprint"]:
            problems.append(f"{name}: the mixture of step {step} is of another data set ({about['fingerprint']})")
        stream = streams.setdefault(name, _Stream(name, about, manifest))
        changed = about["excluded"] != stream.about["excluded"]
        stream.about, stream.since = about, 0
        if changed or not len(stream.due):
            stream.begin(stream.number, step)
        stream.first = stream.first if stream.given else step
        if not stream.size:
            raise UserError(f"{run / FOLDER}: {name} has no training sample: the manifest is of another data set")
        if (stream.number, stream.given) != (about["epoch"], about["start"]):
            problems.append(
                f"{name}: the mixture of step {step} begins in epoch {about['epoch']} after {about['start']} samples, "
                f"but the records before it end in epoch {stream.number} after {stream.given}"
            )
    return ended


def _play(streams: dict[str, _Stream], mixed: Mixed, first: int, rows: NDArray, problems: list[str]) -> list[Epoch]:
    """Counts the rows [steps, global batch] of steps in turn; returns the epochs that end in them."""
    total, batch = sum(source["share"] for source in mixed["sources"]), rows.shape[1]
    known, ended = np.zeros(rows.shape, bool), []
    for about in mixed["sources"]:
        stream = streams[about["name"]]
        mine = (rows >= stream.rows.start) & (rows < stream.rows.stop)
        known |= mine
        counts = mine.sum(axis=1)
        taken = stream.since + np.cumsum(counts)
        wanted = (first + 1 + np.arange(len(rows)) - mixed["since"]) * batch * about["share"]
        off = np.flatnonzero(np.abs(taken * total - wanted) >= total)
        if len(off):
            step = first + int(off[0])
            problems.append(
                f"{about['name']}: after step {step} {taken[off[0]]} samples were taken of it, its weight says "
                f"{wanted[off[0]] / total:.2f}"
            )
        stream.since = int(taken[-1])
        ended += _epochs(stream, first, rows - stream.rows.start, mine, counts, problems)
    if not known.all():
        problems.append(f"steps {first} on: row {int(rows[~known][0])} is of no source")
    return ended


def _epochs(
    stream: _Stream, first: int, rows: NDArray, mine: NDArray, counts: Counts, problems: list[str]
) -> list[Epoch]:
    """Counts one source's samples of steps in turn; returns its epochs that end in them."""
    ended, at = [], 0
    totals = stream.given + np.cumsum(counts)
    while at < len(counts):
        ends = int(np.searchsorted(totals, stream.size))  # the step in which this epoch is complete
        inside = slice(at, min(ends, len(counts)))
        _count(stream, first + at, rows[inside][mine[inside]], 1, problems)
        at = ends
        if ends < len(counts):
            _count(stream, first + ends, rows[ends][mine[ends]], 2, problems)
            missing = np.flatnonzero(stream.due & (stream.times == 0))
            if len(missing):
                _say(stream, f"ended in step {first + ends} without {len(missing)} of its samples", missing, problems)
            ended.append(stream.epoch(first + ends, "complete"))
            more = np.where(stream.due, np.maximum(stream.times - 1, 0), 0)
            stream.number, stream.wrong, stream.times = stream.number + 1, False, more
            totals -= stream.size
            stream.first = first + ends + int(totals[ends] == 0)
            at += 1
    stream.given = int(totals[-1])
    return ended


def _count(stream: _Stream, step: int, rows: NDArray, most: int, problems: list[str]) -> None:
    """Adds the rows of one source; none may come more than `most` times."""
    stream.times = stream.times + np.bincount(rows, minlength=len(stream.times))
    not_due = np.flatnonzero((stream.times > 0) & ~stream.due)
    if len(not_due):
        _say(
            stream, f"steps {step} on: {len(not_due)} samples not of the training split, or excluded", not_due, problems
        )
        stream.times[not_due] = 0
    if len(often := np.flatnonzero(stream.times > most)):
        _say(stream, f"steps {step} on: {len(often)} samples were seen more than once", often, problems)
        stream.times = np.minimum(stream.times, most)


def _say(stream: _Stream, what: str, rows: Counts, problems: list[str]) -> None:
    ends = np.cumsum([shard.samples for shard in stream.manifest.shards])
    shard = stream.manifest.shards[int(np.searchsorted(ends, rows[0], "right"))].name
    stream.wrong = True
    problems.append(f"{stream.name}, epoch {stream.number}: {what}: {some(rows.tolist())} ({shard})")
