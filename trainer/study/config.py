"""The keys of a study, its folds, and the one output that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from trainer.config import PretrainConfig
from trainer.evaluate.config import TransferConfig
from umbra import resume
from umbra.config import as_dict, check_fields, config_file, dump, load, setting
from umbra.errors import UserError
from umbra.files import write_text

ROOT = Path(__file__).parents[2]
UNTRAINED = ("random", "scratch")


@dataclass
class ShardStep:
    """How the shards of each rotation are built."""

    config: str = "ptbxl"
    """The name of a YAML of configs/shard."""
    overrides: list[str] = field(default_factory=list)
    """Further `key=value` words of `python -m sharding build`."""
    column: str = "strat_fold"
    """The column of the folds."""


@dataclass
class StudyConfig:
    """Methods x rotations x seeds x tasks x fractions."""

    name: str = ""
    """What the study is called."""
    data: str = ""
    """The folder of the recordings."""
    output: str = ""
    """The folder of all that the study writes."""
    shard: ShardStep = field(default_factory=ShardStep)
    """How the shards of each rotation are built."""
    folds: int = setting(10, ">= 3")
    """Folds of the data set."""
    rotations: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Which rotations of the folds over train, val and test are run."""
    judge: str = setting("test", choices=("test", "validation"))
    """`test`, or `validation` to choose between variants: the rotation's test fold is not touched then."""
    methods: list[str] = field(default_factory=list)
    """Names of configs/pretrain/*.yaml or of `variants` of them, `random` (untrained encoder) or `scratch` (trained
    with labels)."""
    variants: dict[str, list[str]] = field(default_factory=dict)
    """Variant -> [YAML of configs/pretrain, key=value, ...]."""
    reference: str = "adversarial"
    """The method that is compared with each of the others."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of pre-training and of the tests."""
    tasks: list[str] = field(default_factory=lambda: ["rhythm", "sex"])
    """Names of configs/transfer/*.yaml."""
    fractions: list[float] = setting([1.0, 0.1], "> 0 and <= 1")
    """Shares of the train labels."""
    processes: int = setting(2, ">= 1")
    """Processes of one pre-training."""
    pretrain: list[str] = field(default_factory=list)
    """`key=value` words for every pre-training."""
    transfer: list[str] = field(default_factory=list)
    """`key=value` words for every test."""
    bootstrap: int = setting(2000, ">= 2")
    """Resamples of the patients."""
    minutes: float = setting(120.0, "> 0")
    """Time limit of one step, in minutes."""

    def check(self) -> None:
        """Raises `UserError` for anything that would keep a step from running, before the first one."""
        for key in ("name", "data", "output"):
            if not getattr(self, key):
                raise UserError(
                    f"key '{key}' is needed: python -m trainer.study configs/study/NAME.yaml data=DIR output=DIR"
                )
        for key in ("rotations", "methods", "seeds", "tasks", "fractions"):
            if not getattr(self, key):
                raise UserError(f"key '{key}' is empty: give at least one")
        check_fields(self)
        trained = [m for m in self.methods if m not in UNTRAINED]
        if not trained:
            raise UserError("methods: at least one must be pre-trained, the untrained ones take its architecture")
        if self.reference not in self.methods:
            raise UserError(f"reference '{self.reference}' is not among the methods {', '.join(self.methods)}")
        if empty := [name for name, words in self.variants.items() if not words]:
            raise UserError(f"variants.{empty[0]} is empty: give it [YAML of configs/pretrain, key=value, ...]")
        wanted = [("pretrain", self.words(m)[0]) for m in trained] + [("transfer", t) for t in self.tasks]
        for kind, name in [*wanted, ("shard", self.shard.config)]:
            path = config_path(kind, name)
            if not path.is_file():
                known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
                raise UserError(f"{path} does not exist; there are: {known}")
        for method in trained:
            yaml, *words = self.words(method)
            load(PretrainConfig, config_path("pretrain", yaml), [*self.pretrain, *words, "data.path=DIR"]).check()
        taken = set(UNTRAINED) | {p.stem for p in config_path("pretrain", "any").parent.glob("*.yaml")}
        if clash := sorted(set(self.variants) & taken):
            raise UserError(f"variants.{clash[0]}: the name is taken by a method; choose another")
        for rotation in self.rotations:
            folds_of(rotation, self.folds, self.judge)
        for task in self.tasks:
            load(TransferConfig, config_path("transfer", task), self.transfer)

    def words(self, method: str) -> list[str]:
        """The YAML of a pre-trained method and what it adds to it."""
        return self.variants.get(method, [method])


@dataclass(frozen=True)
class Cell:
    """One test: a method of one seed in one rotation, on one task with one fraction of the labels."""

    rotation: int
    method: str
    seed: int
    task: str
    fraction: float

    def directory(self, output: Path) -> Path:
        name = f"{self.task}-{self.fraction:g}"
        return output / f"rotation-{self.rotation}" / "transfer" / f"{self.method}-seed{self.seed}" / name


def config_path(kind: str, name: str) -> Path:
    return as_typed(config_file(f"configs/{kind}/{name}.yaml"))


def as_typed(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def folds_of(rotation: int, folds: int, judge: str = "test") -> tuple[list[int], list[int], list[int]]:
    """Folds (1 to `folds`) of train, val and test: rotation r tests on fold 2r+1 and chooses on fold 2r+2.

    Where `validation` judges, fold 2r+2 is the test, the next one (of the circle) is chosen on, and 2r+1 is left out.
    """
    test, val = 2 * rotation + 1, 2 * rotation + 2
    if rotation < 0 or val > folds:
        raise UserError(f"rotation {rotation} needs folds {test} and {val}, there are {folds}: leave it out")
    unseen = [test]
    if judge == "validation":
        test, val = val, val % folds + 1
    return [f for f in range(1, folds + 1) if f not in (*unseen, test, val)], [val], [test]


def keep_config(config: StudyConfig, output: Path) -> None:
    """Writes the config; refuses an output of another study, but lets its lists of cells and its limits change.

    A variant may be added, and a key that an older version did not have.
    """
    path = output / "config.yaml"
    if path.is_file():
        changes = resume.changes("study", yaml.safe_load(path.read_text()), as_dict(config))
        changed = [c.key for c in changes if resume.UNSET not in (c.old, c.new)]
        if changed:
            raise UserError(f"{output} holds a study with another '{changed[0]}': take a new output or the old value")
    write_text(path, dump(config))
