"""Runs one trial: the shards of its rotation, the pre-training and export of its method, its evaluations."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from trainer.evaluate import leaks
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import open_encoder
from trainer.evaluate.metrics import SHOWN
from trainer.evaluate.probe import features
from trainer.evaluate.reading import read_task
from trainer.evaluate.result import RESULT, run
from trainer.evaluate.store import Store, folder_of
from trainer.export import export
from trainer.run import directory
from trainer.run.record import RECORD, read_record
from trainer.study.cells import Cell, Trial, base_of, run_directory
from trainer.study.compute import equal_epochs
from trainer.study.config import EQUAL, ROOT, UNTRAINED, StudyConfig, as_typed, config_path, folds_of
from trainer.study.steps import Steps
from umbra.config import load
from umbra.directory import CONFIG
from umbra.lock import lock
from umbra.schema import MANIFEST


def run_trial(config: StudyConfig, trial: Trial, steps: Steps) -> None:
    """Runs the steps of one trial that are not done yet."""
    base = base_of(config, trial.rotation)
    with lock(base / "data.lock"):
        steps.run(
            f"shard/{trial.rotation}", shard_command(config, trial.rotation, base), (base / "data" / MANIFEST).is_file
        )
    if trial.method not in UNTRAINED:
        pretrain(config, trial.rotation, trial.method, trial.seed, steps)
    for task in config.tasks:
        assess(config, trial.cells(config, task), steps)


def is_done(config: StudyConfig, trial: Trial) -> bool:
    """Whether all evaluations of a trial are there."""
    cells = (cell for task in config.tasks for cell in trial.cells(config, task))
    return all(_assessed(config, cell) for cell in cells)


def can_begin(config: StudyConfig, trial: Trial) -> bool:
    """An untrained method needs the encoder whose architecture it copies."""
    return trial.method not in UNTRAINED or (_example(config, trial.rotation, trial.seed) / CONFIG).is_file()


def pretrain(config: StudyConfig, rotation: int, method: str, seed: int, steps: Steps) -> None:
    """Pre-trains one method and exports its encoder, unless the encoder exists."""
    base = base_of(config, rotation)
    place = run_directory(base, method, seed)
    if (place / "encoder" / CONFIG).is_file():
        return
    if (place / RECORD).is_file():
        with lock(place / directory.LOCK):  # the run of a process that was killed may go on to its end
            pass
    name = f"{rotation}/{method}/{seed}"
    steps.run(f"pretrain/{name}", pretrain_command(config, method, seed, base), lambda: _finished(place))
    began = time.monotonic()
    export(place)
    steps.note(f"export/{name}", [sys.executable, "-m", "trainer.export", f"run={place}"], time.monotonic() - began)


def _trained(config: StudyConfig) -> list[str]:
    return [m for m in config.methods if m not in UNTRAINED]


def _example(config: StudyConfig, rotation: int, seed: int) -> Path:
    """The encoder whose architecture the untrained ones copy."""
    return run_directory(base_of(config, rotation), _trained(config)[0], seed) / "encoder"


def _finished(run_directory: Path) -> bool:
    return (run_directory / RECORD).is_file() and read_record(run_directory).status == "finished"


def shard_command(config: StudyConfig, rotation: int, base: Path) -> list[str | Path]:
    train, val, test = folds_of(rotation, config.folds, config.judge)
    split = [f"split.train={train}", f"split.val={val}", f"split.test={test}"]
    words = [f"input={config.data}", f"output={base / 'data'}", *config.shard.overrides]
    words += [f"split.column={config.shard.column}", *(word.replace(" ", "") for word in split)]
    return [sys.executable, "-m", "sharding", "build", config_path("shard", config.shard.config), *words]


def pretrain_command(config: StudyConfig, method: str, seed: int, base: Path) -> list[str | Path]:
    beside = Path(sys.executable).with_name("deepspeed")
    some, gpus = ["--num_gpus", str(config.processes)], visible_gpus()
    if "CUDA_VISIBLE_DEVICES" in os.environ and gpus:  # which the launcher ignores beside --num_gpus
        some = ["--include", f"localhost:{','.join(gpus[: config.processes])}"]
    launcher = [beside if beside.is_file() else "deepspeed", *some, "--master_port", str(_free_port())]
    place = [f"data.path={base / 'data'}", f"run={run_directory(base, method, seed)}", f"seed={seed}"]
    scaled = [f"epochs={equal_epochs(config, method, base / 'data'):.6g}"] if method.endswith(EQUAL) else []
    return [
        *launcher,
        as_typed(ROOT / "trainer" / "pretrain.py"),
        config_path("pretrain", config.words(method)[0]),
        *place,
        *([f"method={method}"] if method in config.variants or scaled else []),
        *config.pretrain,
        *config.words(method)[1:],
        *scaled,
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as in `CUDA_VISIBLE_DEVICES`."""
    count = torch.cuda.device_count()
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",") if count else []


def _free_port() -> int:
    """A port that is free now, so that studies on one machine do not collide on the launcher's default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transfer_words(config: StudyConfig, cell: Cell) -> list[str]:
    """The `key=value` arguments of `python -m trainer.transfer` for one cell."""
    output, base = Path(config.output), base_of(config, cell.rotation)
    like = _example(config, cell.rotation, cell.seed)
    encoder = {
        "random": ["encoder=random", f"like={like}"],
        "scratch": ["encoder=random", f"like={like}", "mode=scratch"],
    }.get(cell.method, [f"encoder={run_directory(base, cell.method, cell.seed) / 'encoder'}"])
    place = [f"data={base / 'data'}", f"output={cell.directory(output)}"]
    place += [f"fraction={cell.fraction:g}", f"seed={cell.seed}", *([f"draw={cell.draw}"] if cell.draw else [])]
    return [*config.transfer, *encoder, *place]


def _assessed(config: StudyConfig, cell: Cell) -> bool:
    return (cell.directory(Path(config.output)) / RESULT).is_file()


def assess(config: StudyConfig, cells: list[Cell], steps: Steps) -> None:
    """Evaluates one method on one task with all fractions and draws; features are computed once."""
    left = [cell for cell in cells if not _assessed(config, cell)]
    if not left:
        return
    path = config_path("transfer", left[0].task)
    began = time.monotonic()
    first = load(TransferConfig, path, transfer_words(config, left[0]))
    task = read_task(first)
    encoder = open_encoder(first, task.train)
    seen = leaks.check(first, encoder.config)
    store = Store(encoder, first.batch, folder_of(first))
    given = features(task, store) if first.mode == "probe" else None
    for cell in left:
        words = transfer_words(config, cell)
        place = str(cell.directory(Path(config.output)))
        settings = replace(first, fraction=cell.fraction, draw=cell.draw, output=place)
        result = run(settings, task, encoder, given, store.key, seen)
        print(f"[{cell.step}] {SHOWN[result['metric']]} {result[result['metric']]:.3f}")
        steps.note(cell.step, [sys.executable, "-m", "trainer.transfer", path, *words], time.monotonic() - began)
        began = time.monotonic()
