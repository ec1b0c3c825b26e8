"""The parts of a study: its trials and their evaluations, and the folders where each leaves its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.study.config import StudyConfig


@dataclass(frozen=True)
class Trial:
    """A method of one seed in one rotation: its pre-training, its export and all its evaluations."""

    rotation: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.rotation}-{self.method}-seed{self.seed}"

    def cells(self, config: StudyConfig, task: str) -> list[Cell]:
        """Its evaluations on one task."""
        of = [(fraction, draw) for fraction in config.fractions for draw in range(config.draws_of(fraction))]
        return [Cell(self.rotation, self.method, self.seed, task, fraction, draw) for fraction, draw in of]


@dataclass(frozen=True)
class Cell:
    """One evaluation: a method of one seed in one rotation, on one task with one draw of a fraction of the labels."""

    rotation: int
    method: str
    seed: int
    task: str
    fraction: float
    draw: int = 0

    def directory(self, output: Path) -> Path:
        name = f"{self.task}-{self.fraction:g}" + f"-draw{self.draw}" * bool(self.draw)
        return output / f"rotation-{self.rotation}" / "transfer" / f"{self.method}-seed{self.seed}" / name

    @property
    def step(self) -> str:
        """Its name in steps.jsonl."""
        of = [
            self.rotation,
            self.method,
            self.seed,
            self.task,
            f"{self.fraction:g}",
            *([self.draw] if self.draw else []),
        ]
        return "/".join(["transfer", *map(str, of)])


def base_of(config: StudyConfig, rotation: int) -> Path:
    """The folder of a rotation."""
    return Path(config.output) / f"rotation-{rotation}"


def run_directory(base: Path, method: str, seed: int) -> Path:
    """Of a pre-training in the rotation whose folder is `base`."""
    return base / "runs" / f"{method}-seed{seed}"


def runs_of(config: StudyConfig, method: str) -> list[Path]:
    """The run directories of a method, by rotation and then by seed, whether they exist or not."""
    bases = [base_of(config, rotation) for rotation in config.rotations]
    return [run_directory(base, method, seed) for base in bases for seed in config.seeds]
