"""Plays a step again whose loss was not finite: `python -m trainer.replay RUN step=N`.

A run keeps such a step in `RUN/faults/step-N/` and goes on without it. This command plays it on one process, from the
weights and samples that were kept, changes nothing, and says what is not finite: signals, embeddings, gradients.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import DataConfig, PretrainConfig
from trainer.data.metadata import Rows
from trainer.data.places import Place
from trainer.data.shards import Shards
from trainer.data.sources import opened
from trainer.distributed import World
from trainer.game.game import Game, NonFiniteError, Still
from trainer.game.players import make_players, pairing_of
from trainer.run import faults
from trainer.run.assemble import patient_partners, views_of
from trainer.run.checkpoint import WEIGHTS, give_weights
from trainer.run.pairs import hard_pair
from trainer.run.parts import Run
from trainer.run.record import RunRecord, read_record
from trainer.views import Key
from umbra.config import check_fields, command, load, setting
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError
from umbra.layers import TextOrTexts
from umbra.schema import DTYPE

AGAIN = "the step cannot be played again"


@dataclass
class ReplayConfig:
    """Which step of which run is played again."""

    run: str = ""
    """The run directory."""
    step: int = setting(0, ">= 0")
    """The step, as in the log (0: the last one that was kept)."""
    data: TextOrTexts = ""
    """The folder of the shards, or those of the sources of a mixture by name (empty: the run's `data.path`)."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not self.run:
            raise UserError("run is not set: python -m trainer.replay RUN [step=N]")
        check_fields(self)


def main(argv: list[str]) -> int:
    words = [f"run={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else argv
    own = load(ReplayConfig, None, words)
    own.check()
    run = Path(own.run)
    record = read_record(run)
    cfg = load(PretrainConfig, run / "config.yaml")
    folder, fault, rows = faults.read(run, own.step)
    cfg.data.path = own.data or _sources_then(cfg.data, fault)
    cfg.data.weights = {}  # they are of a later mixture, perhaps, and matter only to the scaling of a new run
    print(f"# step {fault.step + 1}: {rows.size} ECGs of {fault.world} processes; it said: {fault.error}")
    return replay(_known(set_up(cfg, record, folder, fault), fault), fault, rows)


def set_up(cfg: PretrainConfig, record: RunRecord, folder: Path, fault: faults.Fault) -> Run:
    """A run on one process, without what a single step does not need."""
    train = opened(cfg.data, "train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, masker = make_players(cfg, train)
    modules: dict[str, nn.Module] = {"encoder": encoder, **({"masker": masker} if masker is not None else {})}
    give_weights(modules, folder / WEIGHTS, AGAIN)
    players = {name: Still(module.to(device), device, record.precision == "bf16") for name, module in modules.items()}
    views, absent = views_of(cfg, train), cast(Any, None)
    return Run(
        cfg=cfg,
        world=World(0, 1, device),
        folder=folder,
        train=train,
        heldout=None,
        order=absent,
        scaling=Scaling(**record.scaling).to(device),
        first=views[0],
        second=views[1],
        pairing=pairing_of(cfg, train),
        game=Game(
            players["encoder"],
            players.get("masker"),
            cfg.game,
            cfg.temperature,
            hop=cfg.game.hop(train.manifest.rate),
            total=fault.total,
        ),
        engines=players,
        metrics=absent,
        record=record,
        saver=absent,
        state={},
        start=fault.step,
        total=fault.total,
        patients=torch.tensor(train.patients(), device=device),
        partners=patient_partners(cfg, train),
    )


def _sources_then(data: DataConfig, fault: faults.Fault) -> Place:
    """The sources that the step was of, where the run has gone on with others. Raises `UserError` if one has left."""
    path = data.path
    if not fault.sources or not isinstance(path, dict):
        return data.place
    if gone := [name for name in fault.sources if name not in path]:
        places = ", ".join(f"{name}: {path.get(name, 'DIR')}" for name in fault.sources)
        raise UserError(f"the step was of {gone[0]} too, which the run has left since: give data={{{places}}}")
    return {name: path[name] for name in fault.sources}


def _known(run: Run, fault: faults.Fault) -> Run:
    """`run`. Raises `UserError` if its data do not have the samples of the step under the same numbers."""
    for rows, names in zip(fault.rows, fault.samples):
        indices = run.train.indices_of(np.array(rows, np.int64))
        if not ((indices >= 0) & (indices < run.train.count)).all() or run.train.name_of(indices) != names:
            raise UserError(f"the step was of other data than {run.cfg.data.path}, such as {names[0]}: {AGAIN}")
    return run


def replay(run: Run, fault: faults.Fault, rows: Rows) -> int:
    """Plays the step and prints what is not finite; 0 if it is as it was, else 1."""
    device = run.world.device
    drawn = [rows] if run.partners is None else [rows, run.partners(rows, fault.epoch)]
    signals = [[torch.from_numpy(_gathered(run.train, part)).to(device) for part in side] for side in drawn]
    keys = [Key(fault.seed, fault.epoch, torch.from_numpy(part).to(device)) for part in rows]
    pairs = [hard_pair(run, one, key, other) for one, key, other in zip(signals[0], keys, signals[-1])]
    said = _not_finite_first(run)
    try:
        run.game.step(pairs, fault.step)
    except NonFiniteError as error:
        print(f"reproduced: {error}")
        print("\n".join(said + _gradients(run)))
        return 0
    print("not reproduced: all is finite here; another device, precision or version may round otherwise")
    return 1


def _gathered(train: Shards, rows: Rows) -> NDArray[np.int16]:
    return train.gather(train.indices_of(rows), np.empty((len(rows), *train.shape), DTYPE))


def _not_finite_first(run: Run) -> list[str]:
    """Grows, as the step is played, by the first module of each player whose output is not finite."""
    said: list[str] = []
    for player, engine in run.engines.items():
        broken = [name for name, p in engine.module.named_parameters() if not p.isfinite().all()]
        if broken:
            said.append(f"{player}: {len(broken)} weights are not finite, first {broken[0]}")
        names = {module: name for name, module in engine.module.named_modules()}
        for module in engine.module.modules():
            where = f"{player}: the first output that is not finite is that of {names[module] or 'the whole network'}"
            module.register_forward_hook(functools.partial(_look, said, player, where))
    return said


def _look(said: list[str], player: str, where: str, module: nn.Module, given: Any, out: Any) -> None:
    outputs = [tensor for tensor in (out if isinstance(out, tuple) else (out,)) if isinstance(tensor, Tensor)]
    known = any(line.startswith(f"{player}: the first output") for line in said)
    if not known and not all(tensor.isfinite().all() for tensor in outputs):
        said.append(where)


def _gradients(run: Run) -> list[str]:
    lines = []
    for player, engine in run.engines.items():
        names = [n for n, p in engine.module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if names:
            lines.append(f"{player}: {len(names)} gradients are not finite, first {names[0]}")
    return lines


if __name__ == "__main__":
    command(main)
