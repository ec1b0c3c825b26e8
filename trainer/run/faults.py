"""What is kept of a step whose loss is not finite: `RUN/faults/step-N/`, enough to play it again (`trainer.replay`).

`rank-R.json` has the samples of each rank, `random-R.pt` torch's random states (the draws of views and masks are a
function of seed, epoch and sample), `weights.safetensors` the weights of both players, which the step did not change.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import distributed
from trainer.run.checkpoint import WEIGHTS, whole_weights
from trainer.run.problems import Problems
from umbra.directory import save_weights
from umbra.errors import UserError
from umbra.files import make_folder, read_json_as, write_text

FOLDER, KEPT = "faults", 5  # steps of which anything is kept


@dataclass(frozen=True)
class Fault:
    """One rank's share of a step (from 0, of `total`): `rows` of `samples.parquet` [micro, share], and `samples`,
    the same as `SHARD[place]`. `sources`: those of the mixture then, by whose number the rows are (none: of one data
    set, or kept by an earlier version).
    """

    step: int
    total: int
    epoch: int
    seed: int
    rank: int
    world: int
    error: str
    rows: list[list[int]]
    samples: list[list[str]]
    sources: list[str] = dataclasses.field(default_factory=list)


def keep(run: Path, fault: Fault, engines: Mapping[str, Any]) -> Path | None:
    """Writes a fault; called by every rank. None if `KEPT` steps are kept already, or if some rank cannot write it."""
    folder = run / FOLDER / f"step-{fault.step + 1}"
    if distributed.agree(len(list((run / FOLDER).glob("step-*"))) >= KEPT):
        return None
    weights: dict[str, torch.Tensor] = {}
    for name, engine in engines.items():
        prefix = "masker." if name == "masker" else ""
        weights |= {prefix + key: value for key, value in whole_weights(engine).items()}
    problems = Problems()
    with problems.noted():
        make_folder(folder, "run")
        write_text(folder / f"rank-{fault.rank}.json", json.dumps(dataclasses.asdict(fault)) + "\n")
        states = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        torch.save(states, folder / f"random-{fault.rank}.pt")
        if fault.rank == 0:
            save_weights(folder / WEIGHTS, weights)
    if not any(distributed.gather(problems.first)):
        return folder
    problems.warn(str(folder))
    if fault.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def steps(run: Path) -> list[int]:
    """The steps that were kept, counted from 1, ascending."""
    return sorted(int(path.name.partition("-")[2]) for path in (run / FOLDER).glob("step-*"))


def read(run: Path, step: int) -> tuple[Path, Fault, NDArray[np.int64]]:
    """(folder, rank 0's fault, rows [micro, share of all ranks]) of a step, counted from 1 as in the log (0: the last).

    Raises `UserError` if it was not kept.
    """
    known = steps(run)
    folder = run / FOLDER / f"step-{step or (known[-1] if known else 0)}"
    if not (folder / "rank-0.json").is_file():
        raise UserError(f"{folder} does not exist: steps that were kept are {', '.join(map(str, known)) or 'none'}")
    fix = "the step cannot be played again"
    first = read_json_as(Fault, folder / "rank-0.json", fix)
    ranks = [read_json_as(Fault, folder / f"rank-{rank}.json", fix) for rank in range(first.world)]
    return folder, first, np.concatenate([np.array(fault.rows, np.int64) for fault in ranks], axis=1)
