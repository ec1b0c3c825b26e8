"""The training loop: steps, lines of the log, checkpoints, and stopping on request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed, heartbeat
from trainer.data.sources import Sources
from trainer.data.stream import Batch, Stream
from trainer.game.game import NonFiniteError
from trainer.run import checkpoint, faults
from trainer.run.engines import set_learning_rate
from trainer.run.log_line import log_line
from trainer.run.pairs import pairs_of
from trainer.run.parts import Run
from trainer.run.resilience import Stop
from trainer.run.saving import NotSaved
from trainer.run.schedule import player_rate
from umbra.errors import UserError


def train(run: Run, stop: Stop) -> int:
    """Trains from step `run.start` to `run.total`, until asked to stop, or until the data of the next step are not
    available (`missing`); returns the number of steps done. Saves a checkpoint at the end.
    """
    cfg, start = run.cfg, run.start
    done = start
    assert run.train.split == "train"
    if missing(run, start, wait=True):
        return start
    sums: dict[str, list[Tensor]] = {}
    skipped = 0  # steps in a row
    with closing(_open_stream(run)) as stream:
        for batch in _timed(stream, run):
            run.at, rates = batch.step, _set_rates(run, batch.step)
            watched = (batch.step + 1) % cfg.log.every == 0 or batch.step + 1 == run.total
            try:
                ending = _next_is_missing(run, batch.step, stop) or stop.asked
                played, stopping = run.game.step(pairs_of(run, batch), batch.step, ending, watched)
                skipped = 0
            except NonFiniteError as error:
                played, stopping, skipped = {}, error.stop, skipped + 1
                _keep_fault(run, batch, error, skipped)
            done = batch.step + 1
            if run.recorder is not None:
                run.recorder.add(batch.step, run.order.key(batch.step), batch.host_rows)
            heartbeat.settled()
            run.throughput.step(cfg.batch.global_)
            for name, value in played.items():
                sums.setdefault(name, []).append(value)
            last = done == run.total or stopping
            if sums and (done % cfg.log.every == 0 or last):
                heartbeat.doing("log")
                log_line(run, done, sums, rates)
                sums = {}
            _tell_if_not_saved(run, run.saver.look)
            if last or (cfg.checkpoint.every and done % cfg.checkpoint.every == 0):
                with run.throughput.paused():
                    _save(run, done, last)
            if stopping:
                break
    return done


def _open_stream(run: Run) -> Stream:
    """The batches of this process from `run.start` on."""
    cfg, world, of_patients, shards = run.cfg, run.world, run.partners, run.train

    def partners(step: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        assert of_patients is not None
        return shards.indices_of(of_patients(shards.rows_of(indices), run.order.key(step)))

    return Stream(
        shards,
        run.order,
        run.start,
        run.total,
        world.rank,
        world.size,
        world.device,
        threads=cfg.data.threads,
        ahead=cfg.data.ahead,
        fetcher=run.cache,
        partners=partners if of_patients else None,
    )


def _save(run: Run, done: int, last: bool) -> None:
    """Saves a checkpoint. One that cannot be written is no end of the run, unless it is the last."""
    if run.recorder is not None:
        run.recorder.flush()
    _tell_if_not_saved(run, run.saver.finish)
    if last:
        run.saver.save(done, run.engines, run.state)
    else:
        background = run.cfg.checkpoint.asynchronous
        _tell_if_not_saved(run, lambda: run.saver.save(done, run.engines, run.state, background))


def _tell_if_not_saved(run: Run, work: Callable[[], object]) -> None:
    try:
        work()
    except NotSaved as error:
        if run.world.is_main:
            print(f"# WARNING: {error} The run goes on and tries again at the next checkpoint", flush=True)


def missing(run: Run, step: int, wait: bool = False) -> str:
    """Why the data of a step are not available on some machine, the same text on every rank; empty if they are, or if
    that is not known yet and `wait` is false.
    """
    if run.cache is None:
        return ""
    heartbeat.doing("shards", patient=True)
    error = run.cache.failure_by(step) if wait else run.cache.failure
    return next(filter(None, distributed.gather(str(error) if error and error.step <= step else "")), "")


def _next_is_missing(run: Run, step: int, stop: Stop) -> bool:
    """Waits for the data of the next step before this one is done, so that a run without them can save a checkpoint."""
    if run.cache is None:
        return False
    heartbeat.doing("shards", patient=True)
    with run.throughput.waiting():
        return run.cache.failure_by(step + 1, lambda: stop.asked) is not None


def _timed(stream: Stream, run: Run) -> Iterator[Batch]:
    for step in itertools.count(run.start + 1):
        heartbeat.doing("data", step, patient=run.cache is not None)
        run.throughput.found(stream.depth)
        with run.throughput.waiting():
            batch = next(stream, None)
        if batch is None:
            return
        yield batch


def _set_rates(run: Run, step: int) -> dict[str, float]:
    rates = {}
    for name, engine in run.engines.items():
        rates[f"lr/{name}"] = player_rate(run.cfg, name, step, run.total)
        set_learning_rate(engine, rates[f"lr/{name}"])
    return rates


def _keep_fault(run: Run, batch: Batch, error: NonFiniteError, skipped: int) -> None:
    """Keeps what the step was made of. Ends the run if it is one too many in a row."""
    step, shards = batch.step, run.train
    names = [shards.name_of(shards.indices_of(rows)) for rows in batch.host_rows]
    epoch, (rank, world) = run.order.key(step), (run.world.rank, run.world.size)
    rows = batch.host_rows.tolist()
    sources = list(shards.manifests) if isinstance(shards, Sources) else []
    fault = faults.Fault(step, run.total, epoch, run.cfg.seed, rank, world, str(error), rows, names, sources)
    folder = faults.keep(run.folder, fault, run.engines)
    kept = f"`python -m trainer.replay {run.folder} step={step + 1}` plays it again"
    if skipped > run.cfg.max_skipped:
        _tell_if_not_saved(run, run.saver.finish)
        newest = checkpoint.newest(run.folder)
        where = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
        raise UserError(
            f"step {step + 1}: {error}, {skipped} steps in a row, and {where}; lower optim.encoder.lr or "
            f"game.strength, or look for damaged recordings with `python -m sharding verify`; {kept}"
        )
    if run.world.is_main:
        most = f"{skipped} in a row of at most {run.cfg.max_skipped}"
        print(f"# WARNING: step {step + 1} was skipped ({most}): {error}" + (f"; {kept}" if folder else ""), flush=True)
