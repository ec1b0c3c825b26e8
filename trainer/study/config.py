"""The config keys of a study, its folds, and the check that an output folder belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from trainer.config import PretrainConfig
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import device_of
from umbra import resume
from umbra.config import as_dict, check_fields, dump, given_keys, load, setting
from umbra.errors import UserError, naming
from umbra.files import read_yaml, write_text
from umbra.layers import config_file
from umbra.reference import schema_of

C = TypeVar("C")
ROOT = Path(__file__).parents[2]
CONFIG = "config.yaml"
UNTRAINED = ("random", "scratch")
EQUAL = "_equal_compute"  # what the name of a method that is run again by `equal_compute` ends with
# Keys that the study sets for each step, by the list of words that might set them too.
RESERVED = {
    "shard.overrides": {"input", "output", "task", "tasks"}
    | {f"split.{k}" for k in ("column", "train", "val", "test")},
    "pretrain": {"data.path", "run", "seed", "method"},
    "transfer": {"name", "encoder", "like", "data", "output", "fraction", "seed", "draw"},
}


@dataclass
class ShardStep:
    """How the shards of each rotation are built."""

    config: str = "ptbxl"
    """The name of a YAML of configs/shard."""
    overrides: list[str] = field(default_factory=list)
    """Further `key=value` arguments of `python -m sharding build`."""
    column: str = "strat_fold"
    """The column with the fold of each record."""


@dataclass
class Primary:
    """The comparisons that the study is made for, named before its first run; all others are exploratory."""

    tasks: list[str] = field(default_factory=list)
    """Tasks among those of the study."""
    fractions: list[float] = field(default_factory=list)
    """Fractions among those of the study."""
    others: list[str] = field(default_factory=list)
    """Methods that the reference is compared with; some may be left out of `methods`, for a run of a part of the study:
    p-values are adjusted for all of them all the same."""

    @property
    def count(self) -> int:
        return len(self.tasks) * len(self.fractions) * len(self.others)

    def has(self, task: str, fraction: float, other: str) -> bool:
        return task in self.tasks and fraction in self.fractions and other in self.others


@dataclass
class StudyConfig:
    """Methods x rotations x seeds x tasks x fractions."""

    name: str = ""
    """Name of the study."""
    data: str = ""
    """The folder of the recordings."""
    output: str = ""
    """The folder for everything that the study writes."""
    shard: ShardStep = field(default_factory=ShardStep)
    """How the shards of each rotation are built."""
    folds: int = setting(10, ">= 3 and <= 1000")
    """Number of folds of the data set."""
    rotations: list[int] = setting([0, 1, 2, 3, 4], ">= 0 and < 500")
    """Which rotations of the folds over train, val and test to run."""
    judge: str = setting("test", choices=("test", "validation"))
    """Where methods are compared: on `test`, or on `validation` to choose between variants without touching the test
    folds."""
    methods: list[str] = field(default_factory=list)
    """Names of configs/pretrain/*.yaml or of `variants`, `random` (untrained encoder) or `scratch` (trained on the
    labels only)."""
    variants: dict[str, list[str]] = field(default_factory=dict)
    """Variant -> [YAML of configs/pretrain, key=value, ...]."""
    reference: str = "adversarial"
    """The method that is compared with each of the others."""
    primary: Primary = field(default_factory=Primary)
    """The comparisons that the study is made for."""
    equal_compute: list[str] = field(default_factory=list)
    """Methods that are run with as many operations in pre-training as the reference (`epochs` are scaled), as
    `METHOD_equal_compute`; beside the run with equal epochs, or instead of it if `methods` leaves them out."""
    seeds: list[int] = setting([0], ">= 0 and < 1e18")
    """Seeds of pre-training and of the evaluations."""
    tasks: list[str] = field(default_factory=lambda: ["rhythm", "sex"])
    """Names of configs/transfer/*.yaml."""
    fractions: list[float] = setting([1.0, 0.1], "> 0 and <= 1")
    """Fractions of the train labels."""
    draws: int = setting(1, ">= 1 and <= 10000")
    """Draws of the labels with each seed, for fractions below 1; a seed's score is the mean over them."""
    processes: int = setting(2, ">= 1 and <= 1024")
    """Processes per pre-training run."""
    pretrain: list[str] = field(default_factory=list)
    """`key=value` arguments for every pre-training run."""
    transfer: list[str] = field(default_factory=list)
    """`key=value` arguments for every evaluation."""
    bootstrap: int = setting(2000, ">= 2 and <= 1000000")
    """Bootstrap resamples of the patients."""
    minutes: float = setting(120.0, "> 0 and <= 525600")
    """Time limit per step, in minutes."""
    workers: int = setting(1, ">= 1 and <= 1024")
    """Trials (a method of one seed in one rotation) that run at a time on this machine, each in its own process."""
    part: int = setting(0, ">= 0 and < 100000")
    """This machine's number among the `parts`, from 0: it begins with every `parts`-th trial from this one on, and goes
    on with those that nobody runs."""
    parts: int = setting(1, ">= 1 and <= 100000")
    """Number of machines (or tasks of an array job) that share the study."""

    def check(self) -> None:
        """Raises `UserError` for anything that would make a step fail, before the first one."""
        for key in ("name", "data", "output"):
            if not getattr(self, key):
                raise UserError(
                    f"key '{key}' is required: python -m trainer.study configs/study/NAME.yaml data=DIR output=DIR"
                )
        for key in ("rotations", "methods", "seeds", "tasks", "fractions"):
            if not getattr(self, key):
                raise UserError(f"key '{key}' is empty: give at least one")
            _refuse_twice(key, getattr(self, key))
        _refuse_twice("equal_compute", self.equal_compute)
        check_fields(self)
        if self.part >= self.parts:
            raise UserError(f"part={self.part} must be between 0 and parts-1={self.parts - 1}")
        trained = [m for m in self.methods if m not in UNTRAINED]
        if not trained:
            raise UserError("methods: at least one must be pre-trained, since untrained ones copy its architecture")
        if self.reference not in self.methods:
            raise UserError(f"reference '{self.reference}' is not among the methods {', '.join(self.methods)}")
        self._check_primary()
        self._check_equal_compute()
        trained = list(dict.fromkeys([*trained, *self.equal_compute]))
        if empty := [name for name, words in self.variants.items() if not words]:
            raise UserError(f"variants.{empty[0]} is empty: give it [YAML of configs/pretrain, key=value, ...]")
        wanted = [("pretrain", self.words(m)[0]) for m in trained] + [("transfer", t) for t in self.tasks]
        for kind, name in [*wanted, ("shard", self.shard.config)]:
            path = config_path(kind, name)
            if not path.is_file():
                known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
                raise UserError(f"{path} does not exist; there are: {known}")
        for method in trained:
            self._check_pretraining(method)
        taken = {*UNTRAINED, *known_methods()}
        if clash := sorted(set(self.variants) & taken):
            raise UserError(f"variants.{clash[0]}: the name is taken by a method; choose another")
        for rotation in self.rotations:
            folds_of(rotation, self.folds, self.judge)
        for task in self.tasks:
            self._check_transfer(task)
        self._check_shards()

    def _check_primary(self) -> None:
        given = self.primary
        lists: list[tuple[str, list, list]] = [
            ("tasks", given.tasks, self.tasks),
            ("fractions", given.fractions, self.fractions),
            ("others", given.others, [m for m in self._named_anywhere() if m != self.reference]),
        ]
        for key, named, known in lists:
            if unknown := [one for one in named if one not in known]:
                raise UserError(f"primary.{key} has {unknown[0]}; there are: {', '.join(map(str, known))}")
        if len({bool(named) for _, named, _ in lists}) > 1:
            raise UserError("primary: give tasks, fractions and others, or none of them")

    def _named_anywhere(self) -> list[str]:
        """The methods that are run, and those that another part of the study may run."""
        left_out = [m for m in self.primary.others if self._exists(m.removesuffix(EQUAL))]
        return list(dict.fromkeys([*self.compared, *self.variants, *left_out]))

    def _exists(self, method: str) -> bool:
        return method in (*UNTRAINED, *self.variants) or config_path("pretrain", method).is_file()

    def _check_equal_compute(self) -> None:
        kept = (*UNTRAINED, self.reference)
        if unknown := [m for m in self.equal_compute if m in kept or not self._exists(m)]:
            known = sorted({*self.variants, *known_methods()} - {self.reference})
            raise UserError(f"equal_compute has {unknown[0]}; there are: {', '.join(known)}")
        if self.equal_compute and self.reference in UNTRAINED:
            raise UserError(
                f"equal_compute: the reference {self.reference} is not pre-trained: choose another reference"
            )
        if taken := [m for m in (*self.methods, *self.variants) if m.endswith(EQUAL)]:
            raise UserError(f"{taken[0]}: names that end with {EQUAL} are for `equal_compute`: choose another")

    def _check_shards(self) -> None:
        if not self.shard.column:
            raise UserError("shard.column is empty: name the table's column of folds")
        path = config_path("shard", self.shard.config)
        build = _loaded(schema_of("shard"), path, self.shard.overrides, "shard.overrides")
        build.split.column = self.shard.column
        with naming("shard.overrides"):
            build.check()

    def _check_pretraining(self, method: str) -> None:
        name, *words = self.words(method)
        path = config_path("pretrain", name)
        _loaded(PretrainConfig, path, self.pretrain, "pretrain")
        _refuse_reserved(PretrainConfig, words, f"variants.{method}", RESERVED["pretrain"])
        cfg = load(PretrainConfig, path, [*self.pretrain, *words], f"of variants.{method}")
        cfg.data.path = "DIR"
        with naming(f"method {method}"):
            cfg.check()
        if cfg.steps and self.equal_compute and method in (self.reference, *self.equal_compute):
            raise UserError(f"equal_compute scales epochs, but {method} has steps={cfg.steps}: use epochs")

    def _check_transfer(self, task: str) -> None:
        cfg = _loaded(TransferConfig, config_path("transfer", task), self.transfer, "transfer")
        cfg.encoder = cfg.data = cfg.output = "DIR"
        with naming("transfer"):
            cfg.check()
            if cfg.mode == "scratch":
                raise UserError("mode=scratch would train every method from scratch: name `scratch` among the methods")
            device_of(cfg.device)
        if "scratch" in self.methods:
            with naming("transfer, for the method scratch"):
                replace(cfg, mode="scratch").check()

    def draws_of(self, fraction: float) -> int:
        """The draws of a fraction of the labels; of all labels there is one."""
        return self.draws if fraction < 1 else 1

    @property
    def compared(self) -> list[str]:
        """All methods, also those of `equal_compute`."""
        return [*self.methods, *(method + EQUAL for method in self.equal_compute)]

    def words(self, method: str) -> list[str]:
        """The YAML of a pre-trained method, and its overrides."""
        name = method.removesuffix(EQUAL)
        return self.variants.get(name, [name])


def _refuse_twice(key: str, given: Sequence[str | float]) -> None:
    """Raises `UserError` for what the names of cells do not tell apart: it would count twice in means and intervals."""
    names = [f"{one:g}" if isinstance(one, float) else str(one) for one in given]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{key} has {twice} twice: give each once")


def _loaded(schema: type[C], path: Path, words: Sequence[str], key: str) -> C:
    """The config of a step with the words of the study's `key`. Raises `UserError` for one that the study sets."""
    _refuse_reserved(schema, words, key, RESERVED[key])
    return load(schema, path, words, f"of {key}")


def _refuse_reserved(schema: type, words: Sequence[str], key: str, reserved: set[str]) -> None:
    if taken := sorted(given_keys(schema, words, f"of {key}") & reserved):
        raise UserError(f"{key}: the study sets {taken[0]} itself: leave it out")


def config_path(kind: str, name: str) -> Path:
    return as_typed(config_file(f"configs/{kind}/{name}.yaml"))


def known_methods() -> list[str]:
    """The names of configs/pretrain/*.yaml."""
    return [path.stem for path in config_path("pretrain", "any").parent.glob("*.yaml")]


def as_typed(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def folds_of(rotation: int, folds: int, judge: str = "test") -> tuple[list[int], list[int], list[int]]:
    """Folds (1 to `folds`) of train, val and test: rotation r tests on fold 2r+1 and selects on fold 2r+2.

    With `validation`, fold 2r+2 is the test fold, the next one (cyclically) is for selection, and 2r+1 is left out.
    """
    test, val = 2 * rotation + 1, 2 * rotation + 2
    if rotation < 0 or val > folds:
        raise UserError(f"rotation {rotation} needs folds {test} and {val}, there are only {folds}: leave it out")
    unseen = [test]
    if judge == "validation":
        test, val = val, val % folds + 1
    return [f for f in range(1, folds + 1) if f not in (*unseen, test, val)], [val], [test]


def keep_config(config: StudyConfig, output: Path) -> None:
    """Writes the config; refuses the output of a different study, except for its lists of cells and its limits.

    A variant may be added, and so may a key that an older version did not have. A file that says the same is not
    written again.
    """
    path, text = output / CONFIG, dump(replace(config, workers=1, part=0, parts=1))
    if path.is_file():
        kept = read_yaml(path, "delete it and run the same study again, which writes it anew")
        if not {"methods", "rotations"} <= kept.keys():
            raise UserError(f"output={output} holds a {CONFIG} that is not of a study: choose another folder")
        changes = resume.changes("study", kept, as_dict(config))
        changed = [c.key for c in changes if resume.UNSET not in (c.old, c.new)]
        fixed = config.primary.tasks or config.equal_compute  # both are about the reference
        if fixed and kept.get("reference", config.reference) != config.reference:
            changed.append("reference")
        if changed:
            raise UserError(f"{output} holds a study with another '{changed[0]}': use a new output or the old value")
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)
