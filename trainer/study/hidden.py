"""Where the masks of a study fall: its maskers on held-out ECGs of their own rotations, all rotations together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.config import PretrainConfig
from trainer.data.shards import Shards
from trainer.evaluate.delineation import WAVES
from trainer.evaluate.lift import Lift, cell, heading, joined, rows
from trainer.evaluate.mask_lift import delineated, hidden_of, masks_of_run, place_of, spread, task_of, with_classes
from trainer.run.checkpoint import newest
from trainer.study.cells import base_of, run_directory, runs_of
from trainer.study.config import StudyConfig
from umbra.config import load, setting


@dataclass
class HeldOut:
    """Which ECGs of each rotation are looked at."""

    split: str = "val"
    """The split of each rotation that the ECGs are taken from."""
    ecgs: int = setting(500, ">= 2")
    """Number of ECGs of each rotation (at most)."""
    lead: str = "II"
    """The lead that is delineated."""
    by: str = "rhythm"
    """A task of configs/transfer whose classes get a table each (empty: none)."""
    bootstrap: int = setting(1000, ">= 2 and <= 1000000")
    """Bootstrap resamples of the patients."""


def maskers(config: StudyConfig, methods: Sequence[str]) -> list[str]:
    """The methods with a masker, as far as all their runs still have a checkpoint."""
    found = []
    for method in methods:
        places = [place for place in runs_of(config, method) if (place / "config.yaml").is_file()]
        if places and load(PretrainConfig, places[0] / "config.yaml").game.enabled:
            if all(newest(place) for place in runs_of(config, method)):
                found.append(method)
            else:
                print(f"# {method}: runs without a checkpoint: where its masks fall is not known any more")
    return found


def lifts_of(config: StudyConfig, methods: Sequence[str], which: HeldOut) -> dict[str, list[Lift]]:
    """The lifts under the masks of each method and their controls: the ECGs of all rotations, each under the maskers of
    its rotation, the mean over the seeds; intervals by patients."""
    opened = {rotation: Shards(base_of(config, rotation) / "data", which.split) for rotation in config.rotations}
    for shards in opened.values():
        place_of(which.lead, shards)
        task_of(which.by, shards.table())
    parts, hidden = [], {method: _Hidden(config.seeds) for method in methods}
    for rotation, shards in opened.items():
        ecgs, table = spread(shards, which.ecgs)
        found = delineated(which.lead, shards, ecgs)
        parts.append(with_classes(found, which.by, table))
        for method in methods:
            for seed in config.seeds:
                run = run_directory(base_of(config, rotation), method, seed)
                masks = masks_of_run(run, load(PretrainConfig, run / "config.yaml"), shards, ecgs)
                hidden[method].add(seed, hidden_of(masks, found, draw=rotation))
    ecgs_of_all = joined(parts)
    return {method: rows(ecgs_of_all, of.pooled(), which.bootstrap) for method, of in hidden.items()}


class _Hidden:
    """What the masks of one method hide: by kind and seed a part for each rotation, in turn."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._parts: dict[str, dict[int, list[NDArray[np.float64]]]] = {}

    def add(self, seed: int, counts: Mapping[str, NDArray[np.float64]]) -> None:
        for kind, of in counts.items():
            self._parts.setdefault(kind, {s: [] for s in self._seeds})[seed].append(of)

    def pooled(self) -> dict[str, NDArray[np.float64]]:
        """[S, n, 7] by kind."""
        return {kind: np.stack([np.concatenate(of[s]) for s in self._seeds]) for kind, of in self._parts.items()}


def markdown(found: Mapping[str, Sequence[Lift]]) -> str:
    """A table for each group of ECGs: a row a method and kind of mask, a column a wave."""
    first = next(iter(found.values()))
    parts = []
    for group in dict.fromkeys(row.group for row in first):
        lines = [heading(next(row for row in first if row.group == group)), ""]
        lines += ["| method | masks | " + " | ".join(WAVES) + " |", "|---" * (2 + len(WAVES)) + "|"]
        for method, told in found.items():
            mine = [row for row in told if row.group == group]
            for kind in dict.fromkeys(row.masks for row in mine):
                cells = [method, kind, *(cell(row) for row in mine if row.masks == kind)]
                lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
