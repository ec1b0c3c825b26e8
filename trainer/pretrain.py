"""Pre-trains an encoder on a sharded data set.

    deepspeed trainer/pretrain.py CONFIG.yaml data.path=DIR run=DIR key=value ...

The configs of the methods are in configs/pretrain/; the keys are described in trainer/config.py and, those of the game,
in trainer/masking.py. With `--dry-run` all keys are printed, and what would be done. The same command again goes on
from the newest checkpoint of the run directory.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__" and Path(sys.path[0]).name == "trainer":
    del sys.path[0]  # the launcher puts this folder first, where `dist` or `metrics` would hide other modules

import torch
from torch import nn

from sharding.config import UserError, as_dict, command, dump, load
from sharding.files import claim_folder, write_text
from trainer import checkpoint, dist, figures, loop
from trainer.compiled import compile_networks
from trainer.config import PretrainConfig
from trainer.data import exclude
from trainer.data.audit import Recorder, next_start
from trainer.data.board import Node
from trainer.data.cache import Cache, open_cache, room
from trainer.data.fetch import Remote, is_remote, without_secrets
from trainer.data.metadata import Metadata
from trainer.data.order import Order, default_lanes
from trainer.data.shards import Shards
from trainer.data.store import local_root
from trainer.data.stream import Partners
from trainer.engines import make_engine, uses_bf16
from trainer.game import Game, Recogniser
from trainer.masking import GameConfig
from trainer.metrics import METRICS, Metrics, new_wandb_id
from trainer.models import build_encoder, build_masker, building
from trainer.models.batchnorm import batch_norms, over_all_ranks
from trainer.models.encoder import Scaling
from trainer.models.flops import peak, training_flops
from trainer.models.projector import Projector
from trainer.models.temperature import Temperature
from trainer.resilience import Stop
from trainer.views import Views, build


def main(argv: list[str]) -> int:
    words = [w for w in argv if not w.startswith("--local_rank")]
    cfg = read_config([w for w in words if w != "--dry-run"])
    folder = Path(cfg.run)
    claim_folder(folder, "run")
    root, remote = local_root(cfg.data.path, cfg.data.cache), is_remote(cfg.data.path)
    train = Shards(root, "train", remote, cfg.data.exclude)
    heldout = Shards(root, "val", remote) if train.manifest.of_split("val") else None
    order = make_order(cfg, train, checkpoint.saved_state(checkpoint.newest(folder)))
    if cfg.data.partner == "patient" and not train.manifest.patient_ids:
        raise UserError("data.partner=patient: the source of the data set has no patient ids; use data.partner=same")
    order.ranks(int(os.environ.get("WORLD_SIZE", "1")))
    encoder, masker = make_players(cfg, train)
    views = [build(v, train.manifest.leads) for v in (cfg.views.first, cfg.views.second)]
    total = cfg.total_steps(order.steps_per_epoch)
    if "--dry-run" in words:
        print(dump(cfg) + describe(cfg, train, order, encoder, masker, total), end="")
        if remote:
            least, whole = room(train.manifest, order, Node(), 0, total, loop.kept_shards(cfg, order, train, heldout))
            print(f"# data.cache on one machine: {whole / 1e9:.3f} GB hold all, {least / 1e9:.3f} are the least")
        return 0
    if checkpoint.newest(folder) and cfg.resume == "never":
        raise UserError(f"run={folder} holds checkpoints already and resume=never: choose another run directory")
    world = dist.initialise()
    try:
        return _run(cfg, world, folder, train, heldout, order, encoder, masker, views, total)
    finally:
        dist.finalise()


def read_config(words: list[str]) -> PretrainConfig:
    """The config of a command line: an optional YAML first, then `key=value` words."""
    path = words[0] if words and "=" not in words[0] else None
    cfg = load(PretrainConfig, path, words[1:] if path else words)
    cfg.method = cfg.method or (Path(path).stem if path else "default")
    cfg.check()
    return cfg


def make_order(cfg: PretrainConfig, train: Shards, saved: Mapping[str, Any]) -> Order:
    """The order of a run that goes on from the checkpoint whose state is `saved`, or is new if that is empty."""
    lanes = cfg.data.lanes or default_lanes(cfg.contrast)
    changes = exclude.changes(cfg.data.exclude, train.shards, saved)
    return Order(train.counts, cfg.seed, cfg.batch.global_, lanes, cfg.accumulation, cfg.data.block_shards, changes)


def make_players(cfg: PretrainConfig, train: Shards) -> tuple[Recogniser, nn.Module | None]:
    """Encoder with projector, and masker (None without the game), with weights from the seed, the same on all ranks."""
    manifest = train.manifest
    torch.manual_seed(cfg.seed)
    backbone = build_encoder(cfg.encoder.name, len(manifest.leads), manifest.samples, cfg.encoder.args)
    if batch_norms(backbone) and cfg.batch.device:
        raise UserError(
            f"batch.device={cfg.batch.device}: with batch norm an ECG's features depend on its whole contrast batch, "
            "which cannot pass in chunks; use batch.device=0 or encoder.args.norm=group"
        )
    with building("projector"):
        projector = Projector(backbone.dim, cfg.projector.hidden, cfg.projector.out)
    temperature = Temperature(cfg.temperature) if cfg.learn_temperature else None
    rows = (1 + masked_views(cfg.game)) * cfg.batch.device
    encoder = Recogniser(over_all_ranks(backbone), projector, temperature, chunk=rows)
    if not cfg.game.enabled:
        return encoder, None
    hop = cfg.game.hop(manifest.rate)
    if hop >= manifest.samples:
        seconds = manifest.samples / manifest.rate
        raise UserError(
            f"game.resolution_s={cfg.game.resolution_s:g} leaves one cell in a window of {seconds:g} s: use less"
        )
    cells, rare = -(-manifest.samples // hop), min(cfg.game.coverage, 1 - cfg.game.coverage)
    if cfg.game.threshold == "coverage" and cfg.game.family != "spectral" and rare * cells < 0.5:
        raise UserError(
            f"game.coverage={cfg.game.coverage:g} of {cells} cells a window comes to less than half a cell, the least "
            f"is one of {cells}: lower game.resolution_s={cfg.game.resolution_s:g}"
        )
    leads = len(manifest.leads)
    shape = (cfg.masker.width, cfg.masker.depth, cfg.masker.kernel)
    masker = build_masker(cfg.masker.name, leads, cfg.game.channels(leads, hop), hop, *shape)
    masker.chunk = cfg.batch.device
    return encoder, masker


def masked_views(game: GameConfig) -> int:
    """Masked copies of view 2 that pass the encoder (one that is not masked without the game)."""
    return game.masks if game.enabled and game.use == "all" else 1


def describe(
    cfg: PretrainConfig, train: Shards, order: Order, encoder: Recogniser, masker: nn.Module | None, total: int
) -> str:
    """What a run would do: steps, parameters, memory of weights and optimiser, storage of the checkpoints."""
    sizes = [sum(p.numel() for p in m.parameters()) if m is not None else 0 for m in (encoder, masker)]
    mib = sum(sizes) * 4 / 2**20
    changes = [
        f"# from step {at} on without {', '.join(out) or 'nothing'}\n"
        for at, out in exclude.told(order.changes, train.shards)
    ]
    saves = total // cfg.checkpoint.every if cfg.checkpoint.every else 1
    return (
        f"# {train.count} training ECGs, {order.steps_per_epoch} steps an epoch, {total} steps of {cfg.batch.global_}, "
        f"{order.lanes} lanes\n# parameters: encoder with projector {sizes[0]:,}, masker {sizes[1]:,}\n"
        f"# memory: weights, gradients and AdamW {4 * mib:.0f} MiB; "
        f"storage: {min(max(saves, 1), cfg.checkpoint.keep) * 4 * mib:.0f} MiB of checkpoints in {cfg.run}\n"
        + "".join(changes)
    )


def _run(
    cfg: PretrainConfig,
    world: dist.World,
    folder: Path,
    train: Shards,
    heldout: Shards | None,
    order: Order,
    encoder: Recogniser,
    masker: nn.Module | None,
    views: list[Views],
    total: int,
) -> int:
    mfu = _mfu_per_ecg(cfg, world, train, encoder, masker)
    players = {"encoder": encoder} if masker is None else {"encoder": encoder, "masker": masker}
    if cfg.compile:
        compile_networks(players.values(), world.device)
    engines = {name: make_engine(m, getattr(cfg.optim, name), cfg, world.device) for name, m in players.items()}
    found = dist.agree(str(checkpoint.newest(folder) or ""))
    order = make_order(cfg, train, checkpoint.saved_state(Path(str(found)) if found else None))
    state = _state(cfg, world, order, train)
    start = checkpoint.load(Path(str(found)), engines, state) if found else 0
    if start >= total:
        if world.is_main:
            print(f"run {folder} has its {total} steps already; raise epochs or steps, or choose another run=")
        return 0
    cache = _open_cache(cfg, world, order, train, heldout, start, total)
    info = _run_info(cfg, folder, train, total, uses_bf16(cfg.precision, world.device), world)
    scaling = Scaling(train.manifest.lead_mean_mv, train.manifest.lead_std_mv, cfg.scaling).to(world.device)
    if world.is_main:
        _write_run(folder, cfg, info, "running")
        print(describe(cfg, train, order, encoder, masker, total), end="", flush=True)
        print(f"# run {folder}: step {start} to {total} on {world.size} x {world.device.type}", flush=True)
    hop = cfg.game.hop(train.manifest.rate)
    game = Game(engines["encoder"], engines.get("masker"), cfg.game, cfg.temperature, hop, total)
    metrics = Metrics(folder, cfg.wandb, {**info, "config": as_dict(cfg)}, world.is_main, start)
    recorder = _recorder(cfg, world, order, train, start)
    run = loop.Run(
        cfg,
        world,
        folder,
        train,
        heldout,
        order,
        scaling,
        first=views[0],
        second=views[1],
        game=game,
        engines=engines,
        metrics=metrics,
        state=state,
        total=total,
        cache=cache,
        recorder=recorder,
        patients=torch.tensor(train.patients(), device=world.device),
        mfu_per_ecg=mfu,
        partners=_partners(cfg, order, train),
    )
    try:
        with Stop(cfg.max_minutes).listening() as stop:
            done = loop.train(run, start, stop)
        missing = loop.missing(run, done)
    except UserError as error:
        error.alone = True
        raise
    finally:
        metrics.close({})
        for part in (cache, recorder):
            if part is not None:
                part.close()
    if missing:
        _stop_for_data(run, done, info, missing)
    if world.is_main:
        _end(run, done, info, stop.reason or "another process was asked to")
    return 0


def _end(run: loop.Run, done: int, info: dict[str, Any], reason: str) -> None:
    """Of a run that has its steps, or was asked to stop: its curves, its state, what to do next."""
    figures.loss_curves(run.folder / METRICS, run.folder / "figures" / "curves.png")
    finished = done == run.total
    _write_run(run.folder, run.cfg, info, "finished" if finished else "interrupted")
    said = "finished" if finished else f"stopped ({reason}) with a checkpoint"
    follow = f"python -m trainer.export run={run.folder}" if finished else "the same command goes on from here"
    print(f"# {said} at step {done} of {run.total}; next: {follow}", flush=True)


def _open_cache(
    cfg: PretrainConfig, world: dist.World, order: Order, train: Shards, heldout: Shards | None, start: int, total: int
) -> Cache | None:
    """The cache of remote shards, shared by the processes of a machine."""
    if not is_remote(cfg.data.path):
        return None
    ranks = dist.ranks_of_machine(world)
    token = f"{dist.agree(secrets.token_hex(8))}-{ranks[0]}"
    node, pinned = Node(world.rank, ranks, world.size), loop.kept_shards(cfg, order, train, heldout)
    words = (train.root, train.manifest, order, node, start, total, cfg.data.cache_gb, token, pinned)
    cache = open_cache(Remote(cfg.data.path), *words, max(4, cfg.data.threads))
    if world.is_main:
        print(f"# shards are fetched into {train.root}, of {cache.size / 1e9:.3f} GB at most", flush=True)
    return cache


def _partners(cfg: PretrainConfig, order: Order, train: Shards) -> Partners | None:
    """With `data.partner=patient`, what draws for each sample of a step another one of its patient."""
    if cfg.data.partner == "same":
        return None
    metadata, first = Metadata(train.root, cfg.data.cache or cfg.run), train.rows.start
    if os.environ["LOCAL_RANK"] == "0":
        metadata.prepare()
    dist.gather(None)  # one process of a machine makes the files, the others wait
    return lambda step, rows: metadata.partners(rows + first, cfg.seed, order.epoch(step).number) - first


def _recorder(cfg: PretrainConfig, world: dist.World, order: Order, train: Shards, start: int) -> Recorder | None:
    """With `data.audit`, what writes the samples that this process trains on."""
    if not cfg.data.audit:
        return None
    number = dist.agree(next_start(cfg.run))
    out = [train.shards[i].name for i in order.epoch(start).excluded]
    return Recorder(cfg.run, train.manifest, int(str(number)), start, order.batch, world.rank, world.size, out)


def _stop_for_data(run: loop.Run, done: int, info: dict[str, Any], missing: str) -> NoReturn:
    """Ends a run whose next data cannot be had; its newest checkpoint is of step `done`, if that is not the first."""
    if run.world.is_main:
        _write_run(run.folder, run.cfg, info, "failed")
    dist.agree("")  # the launcher ends the others once one has ended
    kept = f"a checkpoint of step {done}" if done else "no checkpoint"
    raise UserError(f"{missing}; the run stopped before they were due, with {kept}")


def _mfu_per_ecg(
    cfg: PretrainConfig, world: dist.World, train: Shards, encoder: Recogniser, masker: nn.Module | None
) -> float:
    """Model FLOPs utilisation per ECG and second, by the operations of the simultaneous schedule."""
    flops = training_flops(encoder, masker, 1 + masked_views(cfg.game), *train.shape)
    return flops / (peak(world.device) * world.size)


def _state(cfg: PretrainConfig, world: dist.World, order: Order, train: Shards) -> dict[str, Any]:
    """What a checkpoint keeps to know its run again: the config, with the numbers that 0 stands for."""
    config = as_dict(cfg)
    config["data"]["path"] = without_secrets(cfg.data.path)
    config["data"]["lanes"], config["batch"]["contrast"] = order.lanes, cfg.contrast
    excluded = exclude.told(order.changes, train.shards)
    return {"config": config, "fingerprint": train.manifest.fingerprint, "world": world.size, "excluded": excluded}


def _run_info(
    cfg: PretrainConfig, folder: Path, train: Shards, total: int, bf16: bool, world: dist.World
) -> dict[str, Any]:
    manifest, old = train.manifest, {}
    if world.is_main and (folder / "run.json").is_file():
        old = json.loads((folder / "run.json").read_text())
    return {
        "method": cfg.method,
        "commit": _commit(),
        "versions": {name: version(name) for name in ("umbra", "torch", "deepspeed", "numpy")},
        "wandb_id": old.get("wandb_id") or new_wandb_id(),
        "fingerprint": manifest.fingerprint,
        "key_id": manifest.key_id,
        "steps": total,
        "precision": "bf16" if bf16 else "fp32",
        "world": world.size,
        "encoder": {
            "name": cfg.encoder.name,
            "leads": manifest.leads,
            "samples": manifest.samples,
            "rate": manifest.rate,
            "args": cfg.encoder.args,
        },
        "scaling": {"mode": cfg.scaling, "mean_mv": manifest.lead_mean_mv, "std_mv": manifest.lead_std_mv},
        "data": {"samples": train.count, "patients": len(train.table().column("patient").unique())},
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _write_run(folder: Path, cfg: PretrainConfig, info: dict[str, Any], status: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    public = replace(cfg, data=replace(cfg.data, path=without_secrets(cfg.data.path)))
    texts = {"config.yaml": dump(public), "run.json": json.dumps({**info, "status": status}, indent=1) + "\n"}
    for name, text in texts.items():
        write_text(folder / name, text)


if __name__ == "__main__":
    with dist.ended():
        command(main, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
