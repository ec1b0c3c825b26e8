"""Methods x rotations x seeds x tasks x fractions -> one table, one figure.

`python -m trainer.study configs/study/ptbxl100-first.yaml data=FOLDER output=OUT`: shards the data of each rotation of
its folds, pre-trains each method, exports the encoders and tests them (`trainer.transfer`). Each step leaves a finished
file behind; a second call goes on where the first was cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from scipy.stats import rankdata

from sharding.config import UserError, command, dump, load
from sharding.files import write_text
from sharding.schema import MANIFEST
from trainer.config import PretrainConfig
from trainer.export import export
from trainer.hub import CONFIG
from trainer.scores import bootstrap_auroc, interval, macro_auroc
from trainer.transfer import (
    PREDICTIONS,
    RESULT,
    TransferConfig,
    check_fits,
    features,
    open_encoder,
    plain,
    read_task,
    run,
)

STEPS = "steps.jsonl"
ROOT = Path(__file__).parents[1]
UNTRAINED = ("random", "scratch")
JUDGES = ("test", "validation")
RESOLVABLE = 2.8


@dataclass
class ShardStep:
    """configs/shard/NAME.yaml and further `key=value` words of `python -m sharding build`; the column of the folds."""

    config: str = "ptbxl"
    overrides: list[str] = field(default_factory=list)
    column: str = "strat_fold"


@dataclass
class StudyConfig:
    """`methods`: names of configs/pretrain/*.yaml or of `variants` of them (name: [YAML, key=value, ...]), `random`
    (untrained encoder) or `scratch` (trained with labels).

    `reference` is compared with each of the others. `tasks`: names of configs/transfer/*.yaml. `pretrain` and
    `transfer`: `key=value` words for every pre-training and every test. `minutes`: time limit of one step. `judge`:
    `test`, or `validation` to choose between variants: the rotation's test fold is not touched then.
    """

    name: str = ""
    data: str = ""
    output: str = ""
    shard: ShardStep = field(default_factory=ShardStep)
    folds: int = 10
    rotations: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    judge: str = "test"
    methods: list[str] = field(default_factory=list)
    variants: dict[str, list[str]] = field(default_factory=dict)
    reference: str = "adversarial"
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks: list[str] = field(default_factory=lambda: ["rhythm", "sex"])
    fractions: list[float] = field(default_factory=lambda: [1.0, 0.1])
    processes: int = 2
    pretrain: list[str] = field(default_factory=list)
    transfer: list[str] = field(default_factory=list)
    bootstrap: int = 2000
    minutes: float = 120.0

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


def main(argv: list[str]) -> None:
    path = argv[0] if argv and "=" not in argv[0] else None
    config = load(StudyConfig, path, argv[1:] if path else argv)
    _check(config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    _keep_config(config, output)
    steps = Steps(output, config.minutes * 60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for rotation in config.rotations:
        run_rotation(config, rotation, steps)
    report(config, output)


def _check(config: StudyConfig) -> None:
    for key in ("name", "data", "output"):
        if not getattr(config, key):
            raise UserError(
                f"key '{key}' is needed: python -m trainer.study configs/study/NAME.yaml data=DIR output=DIR"
            )
    trained = [m for m in config.methods if m not in UNTRAINED]
    if not trained:
        raise UserError("methods: at least one must be pre-trained, the untrained ones take its architecture")
    if config.reference not in config.methods:
        raise UserError(f"reference '{config.reference}' is not among the methods {', '.join(config.methods)}")
    if config.judge not in JUDGES:
        raise UserError(f"judge={config.judge} is unknown; use {' or '.join(JUDGES)}")
    if empty := [name for name, words in config.variants.items() if not words]:
        raise UserError(f"variants.{empty[0]} is empty: give it [YAML of configs/pretrain, key=value, ...]")
    wanted = [("pretrain", config.words(m)[0]) for m in trained] + [("transfer", t) for t in config.tasks]
    for kind, name in [*wanted, ("shard", config.shard.config)]:
        path = config_path(kind, name)
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
            raise UserError(f"{path} does not exist; there are: {known}")
    for method in trained:
        yaml, *words = config.words(method)
        load(PretrainConfig, config_path("pretrain", yaml), [*config.pretrain, *words])
    if taken := sorted(set(config.variants) & set(UNTRAINED)):
        raise UserError(f"variants.{taken[0]}: the name is taken by the untrained encoder; choose another")
    for rotation in config.rotations:
        folds_of(rotation, config.folds, config.judge)
    for task in config.tasks:
        load(TransferConfig, config_path("transfer", task), config.transfer)


def config_path(kind: str, name: str) -> Path:
    return _as_typed(ROOT / "configs" / kind / f"{name}.yaml")


def _as_typed(path: Path) -> Path:
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


FREE = (
    "rotations",
    "methods",
    "seeds",
    "tasks",
    "fractions",
    "reference",
    "bootstrap",
    "minutes",
    "output",
    "processes",
)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What must stay: a variant may be added, not changed."""
    variants = {f"variants.{name}": words for name, words in (config.get("variants") or {}).items()}
    return {key: value for key, value in config.items() if key not in (*FREE, "variants")} | variants


def _keep_config(config: StudyConfig, output: Path) -> None:
    """Writes the config; refuses an output of another study, but lets its lists of cells and its limits change."""
    path = output / "config.yaml"
    if path.is_file():
        old, new = (_comparable(yaml.safe_load(text)) for text in (path.read_text(), dump(config)))
        changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
        if changed:
            raise UserError(f"{output} holds a study with another '{changed[0]}': take a new output or the old value")
    write_text(path, dump(config))


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Runs commands, each with a log and at most `seconds` long, and notes what they were and took in steps.jsonl."""

    output: Path
    seconds: float

    def run(self, name: str, words: Sequence[str | Path], done: Callable[[], bool]) -> None:
        """Runs a command unless it is done. Raises `UserError` with the end of its log if it fails or is too slow."""
        if done():
            return
        words = [str(word) for word in words]
        log = self.output / "logs" / f"{name.replace('/', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        print(f"[{name}] {shown(words)}\n[{name}] log: {log}", flush=True)
        began = time.monotonic()
        problem = run_limited(words, log, self.seconds) or ("" if done() else "ended without its result")
        if problem:
            raise UserError(f"step {name} {problem}; log: {log}; it says: {telling_line(log)}")
        self.note(name, words, time.monotonic() - began)

    def note(self, name: str, words: Sequence[str | Path], seconds: float) -> None:
        with open(self.output / STEPS, "a") as file:
            line = {"step": name, "command": shown(words), "seconds": round(seconds, 2)}
            file.write(json.dumps(line) + "\n")
        print(f"[{name}] {seconds:.1f} s", flush=True)


def shown(words: Sequence[str | Path]) -> str:
    """A command as one types it: programs by their names."""
    first = "python" if str(words[0]) == sys.executable else Path(words[0]).name
    return shlex.join([first, *(str(word) for word in words[1:])])


def telling_line(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"error: |[\w.]+(Error|Exception)\b", line)]
    return (named or lines or ["(empty)"])[-1][:300]


def run_limited(words: Sequence[str], log: Path, seconds: float) -> str:
    """Runs a command in a process group of its own; returns in words what went wrong, or nothing.

    None of the group's processes outlives the call, whether it ends, is too slow or is interrupted.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
            return f"ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            return f"took longer than {seconds / 60:.3g} minutes (key 'minutes')"
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes], patience: float = 20.0) -> None:
    """Ends what is left of the command's process group: asked first, killed after `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_rotation(config: StudyConfig, rotation: int, steps: Steps) -> None:
    """Shards, pre-trains, exports and tests what is not done yet of one rotation."""
    base = Path(config.output) / f"rotation-{rotation}"
    steps.run(f"shard/{rotation}", shard_command(config, rotation, base), (base / "data" / MANIFEST).is_file)
    for seed in config.seeds:
        for method in _trained(config):
            pretrain(config, rotation, method, seed, steps)
    for task in config.tasks:
        for seed in config.seeds:
            for method in config.methods:
                assess(config, [Cell(rotation, method, seed, task, f) for f in config.fractions], steps)


def pretrain(config: StudyConfig, rotation: int, method: str, seed: int, steps: Steps) -> None:
    """Pre-trains one method and exports its encoder, unless that is there."""
    base = Path(config.output) / f"rotation-{rotation}"
    place = _run_directory(base, method, seed)
    if (place / "encoder" / CONFIG).is_file():
        return
    name = f"{rotation}/{method}/{seed}"
    steps.run(f"pretrain/{name}", pretrain_command(config, method, seed, base), lambda: _finished(place))
    began = time.monotonic()
    export(place)
    steps.note(f"export/{name}", [sys.executable, "-m", "trainer.export", f"run={place}"], time.monotonic() - began)


def _trained(config: StudyConfig) -> list[str]:
    return [m for m in config.methods if m not in UNTRAINED]


def _run_directory(base: Path, method: str, seed: int) -> Path:
    return base / "runs" / f"{method}-seed{seed}"


def _finished(run_directory: Path) -> bool:
    path = run_directory / "run.json"
    return path.is_file() and json.loads(path.read_text()).get("status") == "finished"


def shard_command(config: StudyConfig, rotation: int, base: Path) -> list[str | Path]:
    train, val, test = folds_of(rotation, config.folds, config.judge)
    split = [f"split.train={train}", f"split.val={val}", f"split.test={test}"]
    words = [f"input={config.data}", f"output={base / 'data'}", *config.shard.overrides]
    words += [f"split.column={config.shard.column}", *(word.replace(" ", "") for word in split)]
    return [sys.executable, "-m", "sharding", "build", config_path("shard", config.shard.config), *words]


def pretrain_command(config: StudyConfig, method: str, seed: int, base: Path) -> list[str | Path]:
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = [beside if beside.is_file() else "deepspeed", "--num_gpus", str(config.processes)]
    launcher += ["--master_port", str(_free_port())]
    place = [f"data.path={base / 'data'}", f"run={_run_directory(base, method, seed)}", f"seed={seed}"]
    return [
        *launcher,
        _as_typed(ROOT / "trainer" / "pretrain.py"),
        config_path("pretrain", config.words(method)[0]),
        *place,
        *([f"method={method}"] if method in config.variants else []),
        *config.pretrain,
        *config.words(method)[1:],
    ]


def _free_port() -> int:
    """A port that is free now, so that studies on one machine do not meet at the launcher's default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transfer_words(config: StudyConfig, cell: Cell) -> list[str]:
    """The `key=value` words of `python -m trainer.transfer` for one cell."""
    output = Path(config.output)
    base = output / f"rotation-{cell.rotation}"
    like = _run_directory(base, _trained(config)[0], cell.seed) / "encoder"
    encoder = {
        "random": ["encoder=random", f"like={like}"],
        "scratch": ["encoder=random", f"like={like}", "mode=scratch"],
    }.get(cell.method, [f"encoder={_run_directory(base, cell.method, cell.seed) / 'encoder'}"])
    place = [f"data={base / 'data'}", f"output={cell.directory(output)}"]
    return [*encoder, *place, f"fraction={cell.fraction:g}", f"seed={cell.seed}", *config.transfer]


def assess(config: StudyConfig, cells: list[Cell], steps: Steps) -> None:
    """Tests one method on one task, all fractions; the features are computed once."""
    left = [cell for cell in cells if not (cell.directory(Path(config.output)) / RESULT).is_file()]
    if not left:
        return
    path = config_path("transfer", left[0].task)
    began = time.monotonic()
    first = load(TransferConfig, path, transfer_words(config, left[0]))
    task, encoder = read_task(first), open_encoder(first)
    check_fits(encoder, task.test.shards, first)
    given = features(encoder, task, first.batch) if first.mode == "probe" else None
    for cell in left:
        words = transfer_words(config, cell)
        settings = replace(first, fraction=cell.fraction, output=str(cell.directory(Path(config.output))))
        result = run(settings, task, encoder, given)
        name = f"transfer/{cell.rotation}/{cell.method}/{cell.seed}/{cell.task}/{cell.fraction:g}"
        print(f"[{name}] macro AUROC {result['auroc']:.3f}")
        steps.note(name, [sys.executable, "-m", "trainer.transfer", path, *words], time.monotonic() - began)
        began = time.monotonic()


# --- pooling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """The test records of all rotations: class number (-1: a class without a common score), patient, rotation,
    probabilities `[n, K]`."""

    classes: list[str]
    label: np.ndarray
    patient: np.ndarray
    rotation: np.ndarray
    probability: np.ndarray

    def ranks(self) -> np.ndarray:
        """Scores `[n, K]` that can be pooled: a record's mid-rank among the test records of its rotation, in (0, 1).

        Each rotation has a probe of its own, and their probabilities lie on scales of their own; ranks do not (Forman
        and Scholz, Apples-to-apples in cross-validation studies, 2010).
        """
        out = np.empty_like(self.probability)
        for r in np.unique(self.rotation):
            here = self.rotation == r
            out[here] = rankdata(self.probability[here], axis=0) / (here.sum() + 1)
        return out

    def mean_over_rotations(self) -> float:
        parts = (self.rotation == r for r in np.unique(self.rotation))
        return float(np.mean([macro_auroc(self.label[p], self.probability[p]) for p in parts]))


def pool(config: StudyConfig, method: str, seed: int, task: str, fraction: float) -> Pooled:
    """Reads the predictions of one method, seed, task and fraction over all rotations."""
    output = Path(config.output)
    files = [Cell(r, method, seed, task, fraction).directory(output) / PREDICTIONS for r in config.rotations]
    tables = [pq.read_table(file).to_pandas() for file in files]
    common = [c for c in tables[0].columns if c.startswith("p_") and all(c in t.columns for t in tables)]
    classes = [c.removeprefix("p_") for c in common]
    number = {name: k for k, name in enumerate(classes)}
    return Pooled(
        classes,
        np.concatenate([[number.get(name, -1) for name in t["label"]] for t in tables]).astype(np.int64),
        np.concatenate([t["patient"].to_numpy() for t in tables]),
        np.concatenate([np.full(len(t), r) for r, t in zip(config.rotations, tables)]),
        np.concatenate([t[common].to_numpy(dtype=np.float64) for t in tables]),
    )


def score(config: StudyConfig, method: str, task: str, fraction: float) -> tuple[dict[str, Any], np.ndarray]:
    """The row of one method in the table, and its macro AUROC in each patient resample `[bootstrap]` (seeds' mean)."""
    pooled = [pool(config, method, seed, task, fraction) for seed in config.seeds]
    by_seed = [macro_auroc(p.label, p.ranks()) for p in pooled]
    resampled = np.mean(
        [bootstrap_auroc(p.label, p.ranks(), p.patient, config.bootstrap).mean(1) for p in pooled], axis=0
    )
    low, high = interval(resampled)
    row = {
        "method": method,
        "task": task,
        "fraction": fraction,
        "auroc": float(np.mean(by_seed)),
        "low": low,
        "high": high,
        "by_seed": by_seed,
        "pooled_probabilities": float(np.mean([macro_auroc(p.label, p.probability) for p in pooled])),
        "mean_over_rotations": float(np.mean([p.mean_over_rotations() for p in pooled])),
        "records": len(pooled[0].label),
        "patients": len(np.unique(pooled[0].patient)),
        "test_counts": {c: int((pooled[0].label == k).sum()) for k, c in enumerate(pooled[0].classes)},
    }
    return row, resampled


def difference(reference: dict[str, Any], other: dict[str, Any], paired: np.ndarray) -> dict[str, Any]:
    """Reference minus other; `paired`: the same difference in each patient resample `[bootstrap]`.

    `resolvable`: the smallest true difference that a two-sided test at 5 % finds with 80 % power,
    (1.96 + 0.84) x the standard error of the paired difference.
    """
    low, high = interval(paired)
    error = float(np.nanstd(paired, ddof=1))
    return {
        "task": reference["task"],
        "fraction": reference["fraction"],
        "reference": reference["method"],
        "other": other["method"],
        "difference": reference["auroc"] - other["auroc"],
        "low": low,
        "high": high,
        "standard_error": error,
        "resolvable": RESOLVABLE * error,
    }


def compare(config: StudyConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all methods, and the paired differences of the reference to each other method."""
    rows, differences = [], []
    for task in config.tasks:
        for fraction in config.fractions:
            scored = {m: score(config, m, task, fraction) for m in config.methods}
            rows += [row for row, _ in scored.values()]
            first, first_resampled = scored[config.reference]
            for method in (m for m in config.methods if m != config.reference):
                row, resampled = scored[method]
                if row["test_counts"] != first["test_counts"]:
                    raise UserError(
                        f"{method} and {config.reference} were tested on different records: use a new output"
                    )
                differences.append(difference(first, row, first_resampled - resampled))
    return rows, differences


# --- report ----------------------------------------------------------------------------------------------------------


def report(config: StudyConfig, output: Path) -> None:
    """Writes results.json, table.md and figure.png, and prints the table."""
    from trainer.figures import study_figure

    rows, differences = compare(config)
    noted = [json.loads(line) for line in (output / STEPS).read_text().splitlines()]
    content = {"name": config.name, "rows": rows, "differences": differences, "cost_seconds": cost(noted)}
    write_text(output / "results.json", json.dumps(plain(content), indent=1) + "\n")
    text = markdown(config, rows, differences, noted)
    write_text(output / "table.md", text)
    study_figure(rows, output / "figure.png")
    print(text)
    print(f"written: {output / 'results.json'}, {output / 'table.md'}, {output / 'figure.png'}")


def cost(noted: list[dict[str, Any]]) -> dict[str, float]:
    """Wall seconds by kind of step; pre-training and tests also by method."""
    total: dict[str, float] = {}
    for step in noted:
        parts = step["step"].split("/")
        keys = [parts[0]] + ([f"{parts[0]} {parts[2]}"] if len(parts) > 2 else [])
        for key in keys:
            total[key] = round(total.get(key, 0.0) + step["seconds"], 2)
    return dict(sorted(total.items()))


def markdown(config: StudyConfig, rows: list[dict], differences: list[dict], noted: list[dict]) -> str:
    """The results as a page: one table of scores, one of differences, the cost, the commands of one rotation."""
    parts = [f"# {config.name}", _explained(config, rows), "## Macro AUROC", _score_table(rows)]
    parts += [f"## {config.reference} minus the others", _difference_table(differences)]
    parts += ["## Cost", _table(["part", "wall seconds"], [[k, f"{v:.0f}"] for k, v in cost(noted).items()])]
    commands = [step["command"] for step in noted if step["step"].split("/")[1] == str(config.rotations[0])]
    parts += [f"## Commands (rotation {config.rotations[0]})", "```sh\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _explained(config: StudyConfig, rows: list[dict]) -> str:
    tests = {row["task"]: row for row in rows}
    counts = "; ".join(
        f"{task}: {row['records']} records of {row['patients']} patients ("
        + ", ".join(f"{c} {n}" for c, n in row["test_counts"].items())
        + ")"
        for task, row in tests.items()
    )
    return (
        f"{len(config.rotations)} rotations of {config.folds} folds, seeds {config.seeds}. "
        f"Pooled {config.judge} records: {counts}. "
        "Scores are pooled as ranks within their rotation, for each rotation has a probe of its own; the two last "
        "columns pool the probabilities as they are, and average the rotations. Intervals: 95 %, "
        f"{config.bootstrap} resamples of the test patients, the same for all methods; they do not hold the spread of "
        "seeds and training sets. Resolvable: 2.8 x the standard error of the paired difference (80 % power, 5 %)."
    )


def _score_table(rows: list[dict]) -> str:
    head = ["task", "labels", "method", "AUROC", "95 %", "probabilities pooled", "mean of rotations"]
    body = [
        [
            row["task"],
            f"{row['fraction']:.0%}",
            row["method"],
            f"{row['auroc']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['pooled_probabilities']:.3f}",
            f"{row['mean_over_rotations']:.3f}",
        ]
        for row in rows
    ]
    return _table(head, body)


def _difference_table(differences: list[dict]) -> str:
    head = ["task", "labels", "other", "difference", "95 %", "resolvable"]
    body = [
        [
            d["task"],
            f"{d['fraction']:.0%}",
            d["other"],
            f"{d['difference']:+.3f}",
            f"{d['low']:+.3f} to {d['high']:+.3f}",
            f"{d['resolvable']:.3f}",
        ]
        for d in differences
    ]
    return _table(head, body)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    command(main)
