"""Saves checkpoints: the files of every rank, then the marker.

In the background a step waits only for a copy in host memory, from which a thread of each process writes its files
while the run goes on. Threads run no collectives: at each step boundary the ranks agree whether all have written, and
then rank 0's thread sets the marker. A run that is killed before has the checkpoint before it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import distributed, heartbeat
from trainer.run.checkpoint import MARKER, STATE, WEIGHTS, begun, committed, folder_of, newest, to_fp32, whole_weights
from trainer.run.host_copies import HostCopies
from trainer.run.problems import Problems
from trainer.run.record import RECORD
from umbra.directory import save_weights
from umbra.errors import UserError
from umbra.files import flush_tree, make_folder, write_text

TAG = "state"  # DeepSpeed's folder within that of an engine
SCRIPT = "_copy_recovery_script"  # DeepSpeed's method that copies a script beside the state


class NotSaved(UserError):
    """A checkpoint could not be written, on some rank; raised on all. Those before it are as they were."""


class Saver:
    """Saves the checkpoints of a run, of which the newest `keep` committed ones stay; at most one is being written.

    Every rank calls each method, at the same point of the run. They raise `NotSaved` on every rank if one of them could
    not write. `device`: of the collectives.
    """

    def __init__(self, run: Path, keep: int, device: torch.device) -> None:
        self._run, self._keep, self._device = run, keep, device
        self._recorded = (run / RECORD).is_file()
        self._copies = HostCopies()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: _Writing | None = None

    def save(self, step: int, engines: Mapping[str, Any], state: Mapping[str, Any], background: bool = False) -> Path:
        """Writes the checkpoint of `step`, after the one before; in the `background` it only begins to."""
        self.finish()
        heartbeat.doing("checkpoint", at_once=True)
        path, problems = folder_of(self._run, step), Problems()
        if distributed.rank() == 0:
            with problems.noted():
                self._refuse_if_gone()
                shutil.rmtree(path, ignore_errors=True)
                make_folder(path, "run")
                for name in engines:  # DeepSpeed makes them between its collectives, where it must not fail
                    (path / name / TAG).mkdir(parents=True)
        _agree(path, problems)
        files = _Files(problems, self._copies if background else None)
        files.collect(path, engines, json.dumps({"step": step, **state}, indent=1))
        self._writing = _Writing(path, problems, self._thread.submit(files.write))
        if not background:
            self.finish()
        return path

    def look(self) -> None:
        """At a step boundary: goes on with what is being written, if all ranks have done their part of it."""
        if self._writing is not None:
            mine = {"busy": float(not self._writing.work.done())}
            if not distributed.max_over_ranks(mine, self._device)["busy"]:
                self._go_on(self._writing)

    def finish(self) -> None:
        """Waits until nothing is being written."""
        while self._writing is not None:
            heartbeat.doing("checkpoint", at_once=True)
            wait([self._writing.work])
            self._go_on(self._writing)

    def _go_on(self, writing: _Writing) -> None:
        """After the files of all ranks the marker, after the marker nothing."""
        self._writing = None
        writing.work.result()
        _agree(writing.path, writing.problems)
        if not writing.marked:
            work = self._thread.submit(self._commit if distributed.rank() == 0 else _nothing, writing)
            self._writing = _Writing(writing.path, writing.problems, work, marked=True)

    def _refuse_if_gone(self) -> None:
        """A run directory that was removed, or unmounted, is not made anew: its other files would not be in it."""
        if self._recorded and not (self._run / RECORD).is_file():
            raise UserError(f"{self._run / RECORD} is gone")

    def _commit(self, writing: _Writing) -> None:
        with writing.problems.noted():
            flush_tree(writing.path)
            write_text(writing.path / MARKER, "")
            _remove_old(self._run, self._keep)


@dataclass
class _Writing:
    """A checkpoint that is being written: the `work` of this process's thread on its files or, once all ranks have
    written theirs, on the marker (`marked`)."""

    path: Path
    problems: Problems
    work: Future[None]
    marked: bool = False


class _Files:
    """What this process is to write of a checkpoint; from `copies` of it, if the state will have changed by then."""

    def __init__(self, problems: Problems, copies: HostCopies | None) -> None:
        self._problems, self._copies = problems, copies
        self._writes: list[Callable[[], Any]] = []

    def collect(self, path: Path, engines: Mapping[str, Any], state: str) -> None:
        """Takes the state of the engines, whole; called by every rank."""
        main, copies = distributed.rank() == 0, self._copies
        weights: dict[str, Tensor] = {}
        if copies:
            copies.begin()
        for name, engine in engines.items():
            heartbeat.doing("checkpoint", at_once=True)
            with self._of(engine):
                engine.save_checkpoint(str(path / name), tag=TAG, save_latest=False)
            prefix = "masker." if name == "masker" else ""
            own = whole_weights(engine, copies.tensor if copies else None, main)
            weights |= {prefix + key: value for key, value in own.items()}
            if copies:
                copies.forget()
        if copies:
            copies.settle()
        if main:
            self._writes.append(lambda: save_weights(path / WEIGHTS, {k: to_fp32(v) for k, v in weights.items()}))
            self._writes.append(lambda: write_text(path / STATE, state))

    @contextlib.contextmanager
    def _of(self, engine: Any) -> Iterator[None]:
        """Takes what DeepSpeed writes in the block, to be written later."""
        writer = getattr(engine, "checkpoint_engine", None)
        replaced = [(owner, name) for owner, name in ((writer, "save"), (engine, SCRIPT)) if hasattr(owner, name)]
        with contextlib.ExitStack() as stack:
            for owner, name in replaced:
                stack.callback(delattr, owner, name)  # the method of its class again
                setattr(owner, name, self._taking(getattr(owner, name)))
            yield

    def _taking(self, write: Callable[..., Any]) -> Callable[..., None]:
        def take(*words: Any, **named: Any) -> None:
            with self._problems.noted():
                kept = self._copies.of((words, named)) if self._copies else (words, named)
                self._writes.append(lambda: write(*kept[0], **kept[1]))

        return take

    def write(self) -> None:
        """Writes all, up to the first problem."""
        for write in self._writes:
            with self._problems.noted():
                write()
            if self._problems.first:
                return


def _agree(path: Path, problems: Problems) -> None:
    """A barrier. Raises `NotSaved` on every rank, and removes what was written, if one of them had a problem."""
    said = distributed.gather(problems.first)
    if not any(said):
        return
    rank = next(rank for rank, text in enumerate(said) if text)
    if distributed.rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
    before = newest(path.parents[1])
    kept = f"{before} stays" if before else "there is none before it"
    raise NotSaved(f"{path} could not be written by rank {rank} ({said[rank]}), {kept}: is the disk full, or gone?")


def _remove_old(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` committed checkpoints, also what a killed run did not write to its end."""
    kept = list(committed(run).values())[-keep:]
    for old in begun(run).values():
        if old not in kept:
            (old / MARKER).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)


def _nothing(writing: _Writing) -> None:
    pass
