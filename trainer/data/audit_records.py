"""The records of a run that the audit judges: with `data.audit=true` each process writes the rows it trained on.

`RUN/audit/start-N.rank-R.bin` has a line of JSON, and a record for each step.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from umbra.errors import UserError
from umbra.files import damaged, write_text
from umbra.schema import MANIFEST, Manifest
from umbra.typed import typed

FOLDER = "audit"
NAME = re.compile(r"start-(\d+)\.rank-(\d+)\.bin")
AT_ONCE = 1 << 22  # rows checked at a time


# --- writing ---


def next_start(run: str | Path) -> int:
    """The number of this start of a run: one more than the last one. All processes must use the same number."""
    return 1 + max((number for number, _, _ in _files(Path(run))), default=0)


class SourceOf(TypedDict):
    """A source of a mixture: its rows begin at row `first`; see `mixtures.Taken` for the rest."""

    name: str
    fingerprint: str
    first: int
    share: int
    excluded: list[str]
    epoch: int
    start: int


class Mixed(TypedDict):
    """The sources of a mixture, and the step that it began at."""

    since: int
    sources: list[SourceOf]


class Recorder:
    """Records what one process trains on. A truncated record is recognised by its checksum; a kill loses no whole one.

    `number` identifies this start of the run (`next_start`), `step` is its first step, `batch` the global batch and
    `excluded` the shards that are left out. Of a mixture, `mixed` says what it is of and `manifests` has its data sets.
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
        mixed: Mixed | None = None,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> None:
        folder = Path(run) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for name, one in (manifests or {"": manifest}).items():
                (folder / name).mkdir(exist_ok=True)
                write_text(folder / name / MANIFEST, one.to_json())
        rows = sum(shard.samples for shard in manifest.shards)
        head = {
            "step": step,
            "batch": batch,
            "world": world,
            "share": batch // world,
            "rows": "<u4" if rows < 1 << 32 else "<i8",
            "excluded": sorted(excluded),
            "fingerprint": manifest.fingerprint,
            **(mixed or {}),
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


# --- reading ---


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


def history_of(run: Path, fingerprint: str, problems: list[str]) -> tuple[list[Stretch], int]:
    """The final history and the number of discarded steps: of several starts that did a step, the last one counts.

    `fingerprint` of the data of all (empty: not compared).
    """
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
        if fingerprint and head["fingerprint"] != fingerprint:
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
