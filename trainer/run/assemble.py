"""Builds a run from its config, once: first its plan, then its parts, by keyword."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer import distributed
from trainer.config import PretrainConfig
from trainer.data import exclude
from trainer.data.audit_records import Recorder, next_start
from trainer.data.mixture import Mixture
from trainer.data.mixtures import ONE, fingerprint
from trainer.data.order import Order, default_lanes
from trainer.data.places import public
from trainer.data.shards import Shards
from trainer.data.sources import Sources, opened
from trainer.game.compiled import compile_networks, wanted
from trainer.game.flops import training_flops
from trainer.game.game import Game
from trainer.game.maskers.base import Masker
from trainer.game.players import ContrastiveEncoder, make_players, pairing_of
from trainer.observe.metrics import Metrics
from trainer.run import checkpoint, directory, mixed
from trainer.run.caching import start_cache
from trainer.run.engines import make_engine, skip_step, uses_bf16
from trainer.run.heldout import heldout_count
from trainer.run.init import Origin, read_init
from trainer.run.online_probe import OnlineProbe, open_probe
from trainer.run.parts import OfPatients, Run
from trainer.run.record import RECORD, known_wandb_id, new_record, read_record, write_record
from trainer.run.saving import Saver
from trainer.run.schedule import player_rate
from trainer.views import Views, build
from umbra.config import as_dict
from umbra.encoders.encoder import Scaling
from umbra.encoders.flops import peak
from umbra.errors import UserError

COMPILER = "compiler"  # folder of a run with what torch's compiler keeps


@dataclass(frozen=True)
class Plan:
    """A run's settings and players, known from its config and data before the process group is joined.

    `views`: of the first and second side of a pair; `total`: steps of the whole run; `patients`: the code of every row
    of `samples.parquet`; `resumed`: step and total steps of the run that is there, if there is one; `init`: the encoder
    that the run begins or began with.
    """

    cfg: PretrainConfig
    train: Shards
    heldout: Shards | None
    order: Order | Mixture
    encoder: ContrastiveEncoder
    masker: Masker | None
    views: tuple[Views, Views]
    total: int
    patients: NDArray[np.int64]
    resumed: tuple[int, int] | None = None
    init: Origin | None = None
    probe: OnlineProbe | None = None


def plan_run(cfg: PretrainConfig) -> Plan:
    """Opens the data and builds the players. Raises `UserError` for what cannot work; writes nothing."""
    folder = Path(cfg.run)
    directory.check(folder)
    known_wandb_id(folder)
    train = opened(cfg.data, "train")
    heldout = opened(cfg.data, "val") if train.manifest.of_split("val") else None
    newest = checkpoint.newest(folder)
    saved = checkpoint.saved_state(newest)
    mixed.keep_scaling(train, saved)
    order = make_order(cfg, train, saved)
    resumed = _resumed(cfg, order, train, newest, saved) if newest else None
    if cfg.of_patients and not train.manifest.patient_ids:
        raise UserError("pair=patient: the source of the data set has no patient ids; use pair=same, halves or crops")
    order.ranks(distributed.launched_size())
    encoder, masker = make_players(cfg, train)
    init = saved.get("init")
    if cfg.init and not newest:
        init, weights = read_init(cfg, train.manifest)
        encoder.backbone.load_state_dict(weights)
    views = views_of(cfg, train)
    total = cfg.total_steps(order.steps_per_epoch)
    probe = open_probe(cfg.log.probe, heldout, probed_count(cfg, heldout, order))
    return Plan(cfg, train, heldout, order, encoder, masker, views, total, train.patients(), resumed, init, probe)


def probed_count(cfg: PretrainConfig, heldout: Shards | None, order: Order | Mixture) -> int:
    """Held-out ECGs that are probed: as many at any world size."""
    return heldout_count(cfg.log.probe_ecgs, heldout.count, order.lanes) if heldout is not None else 0


def _resumed(
    cfg: PretrainConfig, order: Order | Mixture, train: Shards, newest: Path, saved: Mapping[str, Any]
) -> tuple[int, int]:
    """(step, total steps until then) of the run to resume. Raises `UserError` if its config or data are different.

    Precision and world size are compared when the processes have joined: a dry run may be on another machine.
    """
    config = _resolved(cfg, order)
    if cfg.precision == "auto":
        config["precision"] = saved["config"].get("precision", "auto")
    checkpoint.refuse_changes(newest, saved, {"config": config, "fingerprint": _fingerprint(order, train)})
    known = saved["config"]
    before = dataclasses.replace(cfg, steps=known.get("steps", cfg.steps), epochs=known.get("epochs", cfg.epochs))
    return saved["step"], before.total_steps(order.steps_per_epoch)


def build_run(plan: Plan, world: distributed.World) -> Run | None:
    """The parts of a run, resumed from the newest checkpoint if there is one; None if it already has all its steps.

    Called by every rank; writes `run.json`.
    """
    cfg, train, folder = plan.cfg, plan.train, Path(plan.cfg.run)
    mfu = mfu_share(plan, world)
    found = distributed.agree(str(checkpoint.newest(folder) or ""))
    newest = Path(str(found)) if found else None
    # other processes may have seen another newest checkpoint, and the order depends on it
    order = make_order(cfg, train, checkpoint.saved_state(newest))
    state = checkpoint_state(cfg, world, order, train, plan.init)
    if newest and checkpoint.prepare(newest, _players(plan), state) and world.is_main:
        print(f"# {newest} is of another number of processes: the optimiser state is cut anew for {world.size}")
    engines = make_engines(plan, world)
    start = checkpoint.load(newest, engines, state) if newest else 0
    bf16, sources = uses_bf16(cfg.precision, world.device), mixed.sources_of(order)
    record = new_record(cfg, train, plan.total, bf16, world.size, plan.init, sources)
    if start >= plan.total:
        if world.is_main and not _known_as_finished(folder, start == plan.total):
            write_record(cfg, record, "finished")
        return None
    cache = start_cache(cfg, train, plan.heldout, order, world, start, plan.total)
    if world.is_main:
        write_record(cfg, record, "running")
    info = dataclasses.asdict(record)
    return Run(
        cfg=cfg,
        world=world,
        folder=folder,
        train=train,
        heldout=plan.heldout,
        order=order,
        scaling=Scaling(**record.scaling).to(world.device),
        first=plan.views[0],
        second=plan.views[1],
        game=Game(
            engines["encoder"],
            engines.get("masker"),
            cfg.game,
            cfg.temperature,
            hop=cfg.game.hop(train.manifest.rate),
            total=plan.total,
            skip=skip_step,
        ),
        engines=engines,
        metrics=Metrics(folder, cfg.wandb, {**info, "config": as_dict(cfg)}, world.is_main, start),
        record=record,
        saver=Saver(folder, cfg.checkpoint.keep, world.device),
        state=state,
        start=start,
        total=plan.total,
        cache=cache,
        recorder=open_recorder(cfg, world, order, train, start),
        patients=torch.tensor(plan.patients, device=world.device),
        mfu_per_ecg=mfu,
        probe=plan.probe,
        pairing=pairing_of(cfg, train),
        partners=patient_partners(cfg, train),
    )


def _known_as_finished(folder: Path, exactly: bool) -> bool:
    """Whether `run.json` need not be written for a run that has all its steps, `exactly` or more. One that was killed
    after its last checkpoint does not say yet that it is finished."""
    if not (folder / RECORD).is_file():
        return False
    return not exactly or read_record(folder).status == "finished"


def make_engines(plan: Plan, world: distributed.World) -> dict[str, Any]:
    """The DeepSpeed engine of each player."""
    players = _players(plan)
    cache = Path(plan.cfg.run) / COMPILER
    if wanted(plan.cfg.compile, world.device, plan.cfg.zero, players.values(), world.size, cache, say=world.is_main):
        compile_networks(players.values(), say=world.is_main)
    optim = plan.cfg.optim
    return {name: make_engine(m, getattr(optim, name), plan.cfg, world.device) for name, m in players.items()}


def _players(plan: Plan) -> dict[str, nn.Module]:
    both: dict[str, nn.Module | None] = {"encoder": plan.encoder, "masker": plan.masker}
    return {name: module for name, module in both.items() if module is not None}


def make_order(cfg: PretrainConfig, train: Shards, saved: Mapping[str, Any]) -> Order | Mixture:
    """The sample order of a run that resumes from the checkpoint state `saved` (empty: a new run)."""
    lanes = cfg.data.lanes or default_lanes(cfg.contrast)
    if isinstance(train, Sources):
        return mixed.make_mixture(cfg, train, saved, lanes)
    if "mixtures" in saved:
        raise UserError(f"{cfg.run}: {ONE}: give its data.path again, or choose another run=DIR")
    changes = exclude.changes(cfg.data.exclude, train.shards, saved)
    return Order(train.counts, cfg.seed, cfg.batch.global_, lanes, cfg.accumulation, cfg.data.block_shards, changes)


def describe(plan: Plan) -> str:
    """A summary of a run: steps, parameters, memory of weights and optimiser, storage of the checkpoints."""
    cfg, train, order, total = plan.cfg, plan.train, plan.order, plan.total
    sizes = [sum(p.numel() for p in m.parameters()) if m is not None else 0 for m in (plan.encoder, plan.masker)]
    mib = sum(sizes) * 4 / 2**20
    if isinstance(order, Mixture):
        changes = mixed.describe(order, train, plan.heldout, plan.patients)
    else:
        changes = [
            f"# from step {at}: {'without ' + ', '.join(out) if out else 'all shards'}\n"
            for at, out in exclude.as_saved(order.changes, train.shards)
        ]
    saves = total // cfg.checkpoint.every if cfg.checkpoint.every else 1
    return (
        f"# {train.count} training ECGs, {order.steps_per_epoch} steps an epoch, {total} steps of {cfg.batch.global_}, "
        f"{order.lanes} lanes\n# parameters: encoder with projector {sizes[0]:,}, masker {sizes[1]:,}\n"
        f"# memory: weights, gradients and AdamW {4 * mib:.0f} MiB; "
        f"storage: {min(max(saves, 1), cfg.checkpoint.keep) * 4 * mib:.0f} MiB of checkpoints in {cfg.run}\n"
        + "".join(changes)
        + _describe_pairs(plan)
        + _describe_init(plan)
        + _describe_resumed(plan)
    )


def _describe_pairs(plan: Plan) -> str:
    """Where the two views come from; empty if both are of the whole window."""
    cfg, manifest = plan.cfg, plan.train.manifest
    if cfg.of_patients:
        return (
            f"# pair=patient: {_with_partner(plan)} of {plan.train.count} training ECGs have another one of their "
            "patient\n"
        )
    if cfg.pair.kind == "same":
        return ""
    seconds = pairing_of(cfg, plan.train).samples / manifest.rate
    return f"# pair={cfg.pair.kind}: views of {seconds:g} s, of windows of {manifest.samples / manifest.rate:g} s\n"


def _with_partner(plan: Plan) -> int:
    """Training ECGs that have another one of their patient, in a mixture in their source."""
    rows = plan.train.rows_of(np.arange(plan.train.count))
    bases = list(plan.train.bases.values()) if isinstance(plan.train, Sources) else [0]
    found = 0
    for mine in np.split(rows, np.searchsorted(rows, bases[1:])):
        windows = np.unique(plan.patients[mine], return_counts=True)[1]
        found += int(windows[windows > 1].sum())
    return found


def _describe_init(plan: Plan) -> str:
    """What the run goes on from; empty without `init`, and where it resumes."""
    if plan.init is None or plan.resumed:
        return ""
    method, step = (plan.init["training"].get(key) for key in ("method", "step"))
    return f"# begins with the weights and the scaling of {plan.cfg.init} ({method}, step {step})\n"


def _describe_resumed(plan: Plan) -> str:
    """The step to resume at, and what another number of steps does to the learning rate; empty for a new run."""
    if plan.resumed is None:
        return ""
    step, before = plan.resumed
    if plan.total == before or step >= min(plan.total, before):
        return f"# resumes at step {step}\n"
    old, new = (player_rate(plan.cfg, "encoder", step, total) for total in (before, plan.total))
    if math.isclose(old, new, rel_tol=0.01):
        return f"# resumes at step {step}, with {plan.total} steps instead of {before}\n"
    hint = "" if plan.cfg.optim.schedule == "wsd" else " (optim.schedule=wsd, from the first step on, avoids the jump)"
    return (
        f"# resumes at step {step}, with {plan.total} steps instead of {before}: the encoder's learning rate is "
        f"{new:.2g} from here on, not {old:.2g}{hint}\n"
    )


def views_of(cfg: PretrainConfig, train: Shards) -> tuple[Views, Views]:
    """The views of the first and the second side. Raises `UserError` for one that the data cannot have."""
    leads, signal = train.manifest.leads, (pairing_of(cfg, train).samples, train.manifest.rate)
    first, second = ([*own, *cfg.views.both] for own in (cfg.views.first, cfg.views.second))
    return build(first, leads, signal), build(second, leads, signal)


def patient_partners(cfg: PretrainConfig, train: Shards) -> OfPatients | None:
    """With `pair=patient`, what draws for each row of `samples.parquet`, by epoch, another one of its patient."""
    if not cfg.of_patients:
        return None
    metadata = train.metadata(cfg.data.cache or cfg.run)
    if distributed.local_rank() == 0:
        metadata.prepare()
    distributed.gather(None)  # the other processes of the machine wait for the files
    return lambda rows, epoch: metadata.partners(rows, cfg.seed, epoch)


def open_recorder(
    cfg: PretrainConfig, world: distributed.World, order: Order | Mixture, train: Shards, start: int
) -> Recorder | None:
    """With `data.audit`, what writes the samples that this process trains on."""
    if not cfg.data.audit:
        return None
    number = distributed.agree(next_start(cfg.run))
    words = (cfg.run, train.manifest, int(str(number)), start, order.batch, world.rank, world.size)
    if isinstance(order, Mixture):
        assert isinstance(train, Sources)
        return Recorder(*words, mixed=mixed.as_recorded(order, train), manifests=train.manifests)
    return Recorder(*words, [train.shards[i].name for i in order.epoch(start).excluded])


def mfu_share(plan: Plan, world: distributed.World) -> float:
    """Model FLOPs utilisation per ECG and second."""
    leads, samples = len(plan.train.manifest.leads), pairing_of(plan.cfg, plan.train).samples
    flops = training_flops(plan.cfg, plan.encoder, plan.masker, leads, samples)
    return flops / (peak(world.device) * world.size)


def _fingerprint(order: Order | Mixture, train: Shards) -> str:
    """That of the data that a run began with."""
    return fingerprint(order.history) if isinstance(order, Mixture) else train.manifest.fingerprint


def _resolved(cfg: PretrainConfig, order: Order | Mixture) -> dict[str, Any]:
    """The config with what 0 stands for, without the secrets of a URL."""
    config = as_dict(cfg)
    config["data"]["path"] = public(cfg.data.path)
    config["data"]["lanes"], config["batch"]["contrast"] = order.lanes, cfg.contrast
    return config


def checkpoint_state(
    cfg: PretrainConfig, world: distributed.World, order: Order | Mixture, train: Shards, init: Origin | None = None
) -> dict[str, Any]:
    """What a checkpoint keeps to know its run again: the config, with what 0 and `auto` stand for; and its `init`."""
    config = _resolved(cfg, order)
    config["precision"] = "bf16" if uses_bf16(cfg.precision, world.device) else "fp32"
    kept = {"config": config, "fingerprint": _fingerprint(order, train), "world": world.size}
    if isinstance(order, Mixture):
        kept |= mixed.as_saved(order, train)
    else:
        kept |= {"excluded": exclude.as_saved(order.changes, train.shards)}
    return kept | ({"init": init} if init else {})
