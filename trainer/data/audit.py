"""Checks from a run's own records that its epochs were complete.

    python -m trainer.data.audit RUN

With `data.audit=true` each process writes the rows of `samples.parquet` that it trained on, step by step, to
RUN/audit/. The check uses only these records and the manifest, nothing of `order.py`. Steps that were lost in a crash
and repeated by a later start count once. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from umbra.config import command
from umbra.errors import UserError
from umbra.files import damaged, write_text
from umbra.schema import MANIFEST, Manifest, read_manifest
from umbra.typed import typed

FOLDER = "audit"
REPORT = "report.json"
NAME = re.compile(r"start-(\d+)\.rank-(\d+)\.bin")
AT_ONCE = 1 << 22  # rows checked at a time
SHOWN = 12


# --- writing -----------------------------------------------------------------------------------------------------


def next_start(run: str | Path) -> int:
    """The number of this start of a run: one more than the last one. All processes must use the same number."""
    return 1 + max((number for number, _, _ in _files(Path(run))), default=0)


class Recorder:
    """Records what one process trains on. A truncated record is recognised by its checksum; a kill loses no whole one.

    `number` identifies this start of the run (`next_start`), `step` is its first step, `batch` the global batch and
    `excluded` the shards that are left out.
    """

    def __init__(
        self,
        run: str | Path,
        manifest: Manifest,
        number: int,
        step: int,
        batch: int,
        rank: int,
        world: int,
        excluded: Sequence[str] = (),
    ) -> None:
        folder = Path(run) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            write_text(folder / MANIFEST, manifest.to_json())
        rows = sum(shard.samples for shard in manifest.shards)
        head = {
            "step": step,
            "batch": batch,
            "world": world,
            "share": batch // world,
            "rows": "<u4" if rows < 1 << 32 else "<i8",
            "excluded": sorted(excluded),
            "fingerprint": manifest.fingerprint,
        }
        self._type, self._step = _record(head), step
        self._file = open(folder / f"start-{number:05d}.rank-{rank:05d}.bin", "xb", buffering=0)  # noqa: SIM115
        self._write(json.dumps(head).encode() + b"\n")
        self.flush()

    def add(self, step: int, epoch: int, rows: NDArray[np.int64]) -> None:
        """Records that this step was trained on the samples at `rows`. Call it after each step, in order."""
        if step != self._step:
            raise ValueError(f"expected step {self._step}, not {step}")
        record = np.zeros(1, self._type)
        record["step"], record["epoch"], record["rows"] = step, epoch, rows.reshape(1, -1)
        record["check"] = _checks(record)
        self._write(record.tobytes())
        self._step += 1

    def flush(self) -> None:
        """Waits until the records are on disk; call it before a checkpoint is committed."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UserError(f"{self._file.name}: {error.strerror}; free some space, or set data.audit=false") from None


def _record(head: dict[str, Any]) -> np.dtype:
    return np.dtype([("step", "<i8"), ("epoch", "<i4"), ("check", "<u4"), ("rows", head["rows"], (head["share"],))])


def _checks(records: NDArray) -> NDArray[np.uint32]:
    """One checksum per record; nonzero for a record of zeros."""
    rows = records["rows"].astype(np.uint64)
    sums = rows @ (2 * np.arange(rows.shape[1], dtype=np.uint64) + 1)
    sums += (
        records["step"].astype(np.uint64) * np.uint64(2654435761) + records["epoch"].astype(np.uint64) + np.uint64(1)
    )
    return (sums ^ (sums >> np.uint64(32))).astype(np.uint32)


# --- checking ----------------------------------------------------------------------------------------------------


@dataclass
class Epoch:
    """Steps `first` to `last` of the final history. `seen`: number of samples; `remainder`: training rows not seen;
    `due`: steps of a whole epoch; `state`: complete, cut (by a change of data.exclude), unfinished or wrong.
    """

    number: int
    first: int
    last: int
    due: int
    seen: int
    state: str
    remainder: list[int] = field(default_factory=list)


@dataclass
class Verdict:
    """`epochs` of the final history, number of discarded steps (`struck`), and what is wrong, if anything."""

    epochs: list[Epoch]
    struck: int
    problems: list[str]


@dataclass
class Stretch:
    """Steps `first` to `stop - 1` of one start of the run; `records` of its ranks, which begin at step `begin`."""

    begin: int
    first: int
    stop: int
    head: dict[str, Any]
    records: list[NDArray]

    def rows(self, first: int, stop: int) -> NDArray:
        """[ranks, steps, share]"""
        return np.stack([r["rows"][first - self.begin : stop - self.begin] for r in self.records])


def judge(run: str | Path) -> Verdict:
    """Checks the records of a run. Raises `UserError` if there are none."""
    folder = Path(run) / FOLDER
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no records: train with data.audit=true")
    manifest = read_manifest(folder)
    problems: list[str] = []
    history, struck = _history(Path(run), manifest, problems)
    parts: dict[int, list[Stretch]] = defaultdict(list)
    for stretch in history:
        for number, part in _by_epoch(stretch, problems):
            parts[number].append(part)
    epochs = [_judge_epoch(manifest, number, parts[number], problems) for number in sorted(parts)]
    _judge_lengths(epochs, parts, problems)
    return Verdict(epochs, struck, problems)


def _history(run: Path, manifest: Manifest, problems: list[str]) -> tuple[list[Stretch], int]:
    """The final history and the number of discarded steps: of several starts that did a step, the last one counts."""
    starts: dict[int, list[tuple[dict[str, Any], NDArray]]] = defaultdict(list)
    for number, _, path in sorted(_files(run)):
        if (file := _read(path, problems)) is not None:
            starts[number].append(file)
    history: list[Stretch] = []
    struck, end = 0, None
    for _, files in sorted(starts.items(), reverse=True):
        heads, records = zip(*files)
        if any(head != heads[0] for head in heads):
            problems.append(f"the processes that began at step {heads[0]['step']} disagree about the data or the batch")
        head, begin = heads[0], heads[0]["step"]
        if head["fingerprint"] != manifest.fingerprint:
            problems.append(f"the start at step {begin} used another data set ({head['fingerprint']})")
        whole = min(map(len, records)) if len(records) == head["world"] else 0
        longest = begin + max(map(len, records))
        stop = begin + whole if end is None else end
        if end is not None and begin < end and begin + whole < end:
            problems.append(
                f"steps {begin + whole} to {end - 1} are not in the records of all {head['world']} processes"
            )
            stop = begin + whole
        if begin < stop:
            history.append(Stretch(begin, begin, stop, head, list(records)))
        struck += max(0, longest - max(begin, min(stop, longest)))
        end = begin if end is None else min(end, begin)
    if end:
        problems.append(f"steps 0 to {end - 1} have no records: was data.audit off?")
    return history[::-1], struck


def _files(run: Path) -> Iterator[tuple[int, int, Path]]:
    """(start number, rank, path) of each record file."""
    for path in (run / FOLDER).glob("start-*.bin"):
        if name := NAME.fullmatch(path.name):
            yield int(name[1]), int(name[2]), path


class _Head(TypedDict):
    step: int
    batch: int
    world: int
    share: int
    rows: str
    excluded: list[str]
    fingerprint: str


def _read(path: Path, problems: list[str]) -> tuple[dict[str, Any], NDArray] | None:
    """A file's header and its records up to the first invalid one; None if the header is truncated."""
    with open(path, "rb") as file:
        text = file.readline()
    if not text.endswith(b"\n"):
        return None
    try:
        head: dict[str, Any] = {**typed(_Head, json.loads(text))}
        kind = _record(head)
    except (ValueError, TypeError) as error:
        raise damaged(path, error, "delete it; its steps then have no record") from error
    count = (path.stat().st_size - len(text)) // kind.itemsize
    if not count:
        return head, np.empty(0, kind)
    records = np.memmap(path, kind, "r", len(text), (count,))
    step = max(1, AT_ONCE // max(head["share"], 1))
    good = np.concatenate([_checks(part) == part["check"] for part in _pieces(records, step)])
    right = good & (records["step"] == head["step"] + np.arange(count))
    until = count if right.all() else int(np.argmin(right))
    if right[until:].any():
        problems.append(f"{path.name}: the record of step {head['step'] + until} is damaged")
    return head, records[:until]


def _pieces(records: NDArray, step: int) -> Iterator[NDArray]:
    for i in range(0, len(records), step):
        yield records[i : i + step]


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
                f"{where}: {len(wrong)} samples were {words}: {_some(wrong.tolist())} ({_shard(manifest, wrong[0])})"
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


def _some(values: list[int]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def describe(epoch: Epoch) -> str:
    """One line about an epoch."""
    steps = f"epoch {epoch.number}: steps {epoch.first} to {epoch.last}"
    once = f"{epoch.seen} samples, each once"
    return {
        "complete": f"{steps}, complete: {once}; {len(epoch.remainder)} not seen: {_some(epoch.remainder) or 'none'}",
        "cut": f"{steps} of {epoch.due}, ended by a change of data.exclude: {once}",
        "unfinished": f"{steps}, {epoch.last - epoch.first + 1} of {epoch.due} steps so far: {once}",
        "wrong": f"{steps}: WRONG, {epoch.seen} samples",
    }[epoch.state]


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
        print(f"proven: {done} complete epochs, no sample twice in any epoch, none from a held-out split")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    command(main)
