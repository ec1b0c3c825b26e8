"""The training loop: steps, logging, losses on held-out patients, checkpoints, and stopping on request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed, heartbeat
from trainer.config import PretrainConfig
from trainer.data.audit_records import Recorder
from trainer.data.mixture import Mixture
from trainer.data.order import Order
from trainer.data.remote.cache import Cache
from trainer.data.remote.caches import Caches
from trainer.data.shards import Shards
from trainer.data.stream import Batch, Stream, bottleneck, millivolts
from trainer.game.game import Game, NonFiniteError, Pair
from trainer.game.health import alarms
from trainer.game.masking import binarise
from trainer.observe.example_ecg import synthetic_example
from trainer.observe.mask_figure import bands, ecg_with_masks
from trainer.observe.metrics import Metrics
from trainer.observe.throughput import Throughput
from trainer.run import checkpoint, faults
from trainer.run.engines import gradient_norm, set_learning_rate
from trainer.run.online_probe import OnlineProbe
from trainer.run.record import RunRecord
from trainer.run.resilience import Stop
from trainer.run.saving import NotSaved, Saver
from trainer.run.schedule import player_rate
from trainer.views import Key, Views
from trainer.views.pairing import Pairing
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError
from umbra.schema import Shard

KEYS = 4  # from one candidate to the next: view 1, view 2, and MASK_VIEW of the masker
OfPatients = Callable[[NDArray[np.int64], int], NDArray[np.int64]]  # (rows, epoch) -> other rows of the same patients


@dataclass
class Run:
    """The parts of a run, built by `trainer/run/assemble.py`.

    `patients`: the code of each row of `samples.parquet`, on the device; `mfu_per_ecg`: one ECG's
    own operations over the bf16 peak per second of all devices (NaN if the peak is not known).
    """

    cfg: PretrainConfig
    world: distributed.World
    folder: Path
    train: Shards
    heldout: Shards | None
    order: Order | Mixture
    scaling: Scaling
    first: Views
    second: Views
    pairing: Pairing
    game: Game
    engines: dict[str, Any]
    metrics: Metrics
    record: RunRecord
    saver: Saver
    state: dict[str, Any]
    start: int
    total: int
    throughput: Throughput = field(default_factory=Throughput)
    cache: Cache | Caches | None = None  # of remote shards
    recorder: Recorder | None = None
    patients: Tensor | None = None
    mfu_per_ecg: float = math.nan
    at: int = 0  # the step that is being played, from 0
    partners: OfPatients | None = None
    probe: OnlineProbe | None = None


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
    of_patients, shards = run.partners, run.train

    def partners(step: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        assert of_patients is not None
        return shards.indices_of(of_patients(shards.rows_of(indices), run.order.key(step)))

    stream = Stream(
        run.train,
        run.order,
        start,
        run.total,
        run.world.rank,
        run.world.size,
        run.world.device,
        threads=cfg.data.threads,
        ahead=cfg.data.ahead,
        fetcher=run.cache,
        partners=partners if of_patients else None,
    )
    with closing(stream):
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
                _log(run, done, sums, rates)
                sums = {}
            _tell_if_not_saved(run, run.saver.look)
            if last or (cfg.checkpoint.every and done % cfg.checkpoint.every == 0):
                with run.throughput.paused():
                    _save(run, done, last)
            if stopping:
                break
    return done


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


def pairs_of(run: Run, batch: Batch) -> list[Pair]:
    """The contrast batches of a step: int16 -> views cut -> mV -> signal views -> scaled -> mask views."""
    epoch = run.order.key(batch.step)
    others = batch.partners if batch.partners is not None else [None] * len(batch.signals)
    keys = (Key(run.cfg.seed, epoch, rows) for rows in batch.rows)
    return [hard_pair(run, *pair) for pair in zip(batch.signals, keys, others)]


def hard_pair(run: Run, signals: Tensor, key: Key, other: Tensor | None = None) -> Pair:
    """As `make_pair`; with `views.candidates` the pair of each ECG that the encoder finds the least alike (Ferreira et
    al. 2024, arXiv 2310.03940; there by the loss, here by the cosine, which does not hang on the batch)."""
    pair = make_pair(run, signals, key, other)
    if run.cfg.views.candidates == 1:
        return pair
    heartbeat.doing("hard views")
    least = run.game.cosines(pair)
    for candidate in range(1, run.cfg.views.candidates):
        another = make_pair(run, signals, key, other, candidate)
        cosine = run.game.cosines(another)
        harder = (cosine < least)[:, None, None]
        x, v = (torch.where(harder, new, old) for new, old in ((another.x, pair.x), (another.v, pair.v)))
        pair, least = replace(pair, x=x, v=v), torch.minimum(cosine, least)
    return pair


def make_pair(run: Run, signals: Tensor, key: Key, other: Tensor | None = None, candidate: int = 0) -> Pair:
    """The two sides of a contrast batch, of the same signals or the second of `other` ones of the same patients. Each
    `candidate` has random numbers of its own."""
    sides, rate = [], run.train.manifest.rate
    keys = key.with_view(KEYS * candidate), key.with_view(KEYS * candidate + 1)
    cut = run.pairing.cut(signals, signals if other is None else other, keys)
    for views, x, mine in zip((run.first, run.second), cut, keys):
        side = run.scaling(views.signal_views(millivolts(x, run.train.resolution_mv), mine, rate))
        sides.append(views.mask_views(side, mine, rate))
    return Pair(sides[0], sides[1], key, None if run.patients is None else run.patients[key.index])


def heldout_loss(run: Run) -> dict[str, Tensor]:
    """NT-Xent and accuracy on the first ECGs of the held-out patients, with the same views and masks each time."""
    assert run.heldout is not None
    world = run.world
    share = heldout_count(run.cfg.contrast, run.heldout.count, run.order.lanes) // world.size
    if share < 2:
        return {}
    indices = run.heldout.some(world.size * share)[world.rank * share : (world.rank + 1) * share]
    rows = run.heldout.rows_of(indices)
    wanted = [rows] if run.partners is None else [rows, run.partners(rows, 0)]
    signals, *others = (_heldout_signals(run.heldout, part, world.device) for part in wanted)
    key = Key(run.cfg.seed, 0, torch.from_numpy(rows).to(world.device))
    figures = run.game.evaluate(make_pair(run, signals, key, others[0] if others else None))
    return {f"heldout/{name}": value for name, value in figures.items()}


def heldout_count(contrast: int, count: int, lanes: int) -> int:
    """ECGs of a held-out loss: a contrast batch or, if there are fewer, a multiple of the lanes, at any world size."""
    most = min(contrast, count)
    return most - most % lanes or most


def _heldout_signals(heldout: Shards, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    empty = np.empty((len(rows), *heldout.shape), "<i2")
    return torch.from_numpy(heldout.gather(heldout.indices_of(rows), empty)).to(device)


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


def _log(run: Run, step: int, sums: dict[str, list[Tensor]], rates: dict[str, float]) -> None:
    cfg, speed = run.cfg, run.throughput.take()
    with run.throughput.paused():
        values = {name: torch.stack(many).mean() for name, many in sums.items()}
        if cfg.learn_temperature:
            values["temperature"] = run.engines["encoder"].module.temperature.value
        due = cfg.log.heldout_every and (step % cfg.log.heldout_every < cfg.log.every or step == run.total)
        if due and run.heldout is not None:
            values |= heldout_loss(run)
            if run.probe is not None:
                values |= run.probe.figures(run.engines["encoder"], run.scaling, run.world)
        norms = {f"grad_norm/{name}": gradient_norm(engine) for name, engine in run.engines.items()}
        worst = {"data_wait": speed.get("data_wait", 0.0), "queue_depth": -speed.get("queue_depth", 0.0)}
        worst = distributed.max_over_ranks(worst, run.world.device)
        if run.cache is not None:
            speed |= run.cache.meters()
        if "data_wait" in speed:
            speed |= {"data_wait": worst["data_wait"], "queue_depth": -worst["queue_depth"]}
            speed["mfu"] = speed["samples_per_s"] * run.mfu_per_ecg
            speed["data_mb_per_s"] = speed["samples_per_s"] * run.train.manifest.geometry.array_bytes / 1e6
            steps = run.cache.ahead if run.cache is not None else None
            waits = worst["data_wait"], -worst["queue_depth"]
            run.metrics.note(bottleneck(*waits, cfg.data.threads, cfg.data.ahead, steps))
        means = distributed.mean_over_ranks(values)
        said = alarms(means, cfg.contrast, step, run.total, cfg.game)
        for alarm in said:
            run.metrics.note(alarm)
        run.metrics.log(step, {**means, **rates, **norms, **speed, "alarms": len(said)})
        first_or_last = step <= cfg.log.every or step == run.total
        due = cfg.log.figure_every and (step % cfg.log.figure_every < cfg.log.every or first_or_last)
        if due and "masker" in run.engines:
            _draw_masks(run, step)


def shown_shard(order: Order | Mixture) -> int:
    """The training shard whose first ECG is drawn with `wandb.upload_ecgs`: the first that is not excluded."""
    return next(i for i, n in enumerate(order.in_use) if n)


def kept_shards(cfg: PretrainConfig, order: Order | Mixture, train: Shards, heldout: Shards | None) -> list[Shard]:
    """The shards that a run reads repeatedly besides its batches; remote ones stay in the cache."""
    kept = [train.shards[shown_shard(order)]] if cfg.wandb.upload_ecgs else []
    if heldout is not None and cfg.log.heldout_every:
        most = max(cfg.contrast, cfg.log.probe_ecgs if cfg.log.probe else 0)
        ends, seen = np.cumsum(heldout.counts), heldout.some(min(most, heldout.count))
        kept += [heldout.shards[i] for i in np.unique(np.searchsorted(ends, seen, "right"))]
    return kept


@torch.no_grad()
def _draw_masks(run: Run, step: int) -> None:
    """Draws the masks of a synthetic ECG of a view's length; every rank computes them (ZeRO 3 gathers parameters), rank
    0 draws.

    With `wandb.upload_ecgs` also those of the first training ECG.
    """
    manifest, samples = run.train.manifest, run.pairing.samples
    examples: dict[str, NDArray[np.floating]] = {"masks": synthetic_example(manifest.leads, samples, manifest.rate)}
    if run.cfg.wandb.upload_ecgs:
        first = sum(run.train.counts[: shown_shard(run.order)])
        examples["recording"] = run.train.read_mv(np.array([first]))[0, :, :samples]
    for name, example in examples.items():
        signal = torch.as_tensor(example, dtype=torch.float32, device=run.world.device)[None]
        raw = run.game.masks_of(run.engines["masker"], run.scaling(signal))
        masks = bands(binarise(raw, run.game.dials)[0].cpu().numpy(), samples)
        if run.world.is_main:
            path = run.folder / "figures" / f"{name}-{step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            title = f"masks at step {step} ({'training' if name == 'recording' else 'synthetic'} ECG)"
            ecg_with_masks(example, masks, manifest.rate, manifest.leads, path, title)
            run.metrics.figure(step, name, path, recording=name == "recording")


def _keep_fault(run: Run, batch: Batch, error: NonFiniteError, skipped: int) -> None:
    """Keeps what the step was made of. Ends the run if it is one too many in a row."""
    step, shards = batch.step, run.train
    names = [shards.name_of(shards.indices_of(rows)) for rows in batch.host_rows]
    epoch, (rank, world) = run.order.key(step), (run.world.rank, run.world.size)
    rows = batch.host_rows.tolist()
    fault = faults.Fault(step, run.total, epoch, run.cfg.seed, rank, world, str(error), rows, names)
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
