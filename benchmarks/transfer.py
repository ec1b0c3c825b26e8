"""Forty probes in the time of two? `python -m benchmarks.transfer [key=value]`.

On one core and one set of simulated records, with ResNet-18: the way up to commit e61346f (for each task features of
all records, logistic regression for every C, macro AUROC and its bootstrap) for `old` tasks, against
`trainer.transfer` with `tasks` YAMLs in one call, with logistic regression and with ridge regression (all figures,
subgroups and files included). Seconds are CPU time, so that other work on the machine matters less.
`ratio` is the time of the old way over that of the new; 1 or more: the many tasks take no longer than the few.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression

from sharding.writer import ShardWriter, metadata_bytes
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import embed, open_encoder
from trainer.evaluate.many import run_all
from trainer.evaluate.reading import read_task
from trainer.evaluate.scores import interval, macro_auroc, patient_resamples, scorable
from umbra.config import check_fields, command, load, setting
from umbra.directory import CONFIG, WEIGHTS, save_weights
from umbra.encoders.encoder import EncoderConfig
from umbra.files import write_text
from umbra.hub import initialise
from umbra.leads import CANONICAL
from umbra.schema import DTYPE, MANIFEST, SAMPLES, SPLITS, Geometry, Manifest, Shard, fingerprint

LENGTH, WAVES = 1000, 8


@dataclass
class TransferBenchConfig:
    """`old` tasks the old way, `tasks` the new; `records` of each split, two a patient; an encoder of `width`."""

    old: int = setting(2, ">= 1")
    tasks: int = setting(40, ">= 1")
    records: list[int] = setting([1400, 300, 300], ">= 20")
    width: int = setting(64, ">= 8")
    bootstrap: int = setting(2000, ">= 2")


def main(words: list[str]) -> None:
    config = load(TransferBenchConfig, None, words)
    check_fields(config)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(config, folder / "data")
        write_encoder(config, folder / "encoder")
        tasks = [
            TransferConfig(
                name=f"task{t}",
                column=f"task{t}",
                data=str(folder / "data"),
                encoder=str(folder / "encoder"),
                features="none",
                bootstrap=config.bootstrap,
                device="cpu",
            )
            for t in range(config.tasks)
        ]
        seconds, scores = {}, {}
        began = time.process_time()
        scores["old"] = [old_way(task) for task in tasks[: config.old]]
        seconds["old"] = time.process_time() - began
        for head in ("logistic", "ridge"):
            began = time.process_time()
            scores[head] = new_way(tasks, head, folder / head)
            seconds[head] = time.process_time() - began
    print(f"{config.old} tasks the old way: {seconds['old']:.1f} s, macro AUROC {np.mean(scores['old']):.4f}")
    for head in ("logistic", "ridge"):
        first = np.mean(scores[head][: config.old])
        print(f"{config.tasks} tasks, {head}: {seconds[head]:.1f} s, macro AUROC of the first {config.old} {first:.4f}")
    ratios = {f"ratio_{head}": round(seconds["old"] / seconds[head], 2) for head in ("logistic", "ridge")}
    print(json.dumps({**ratios, **{f"seconds_{k}": round(v, 1) for k, v in seconds.items()}}))


def old_way(config: TransferConfig) -> float:
    """One task as up to commit e61346f; returns its macro AUROC."""
    task = read_task(config)
    encoder = open_encoder(config, task.train)
    raw = [embed(encoder, part, config.batch) for part in (task.train, task.val, task.test)]
    mean, std = raw[0].mean(0), raw[0].std(0)
    std[std < 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    train, val, test = ((x - mean) / std for x in raw)
    best, probability = -1.0, np.empty(0)
    for c in sorted(config.probe.C):
        model = LogisticRegression(C=c, max_iter=2000).fit(train, task.train.target.argmax(1))
        value = macro_auroc(task.val.target, model.predict_proba(val))
        if value > best:
            best, probability = value, model.predict_proba(test)
    target, scored = task.test.target > 0, scorable(task.test.target)
    blocks = [
        np.stack([_old_auroc(target[:, k], probability[:, k], weight) for k in scored], axis=1)
        for weight in patient_resamples(task.test.patient, config.bootstrap, 0)
    ]
    interval(np.concatenate(blocks).mean(1))
    return macro_auroc(task.test.target, probability)


def _old_auroc(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    ranked, sign = score[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    ordered = weight[:, order].astype(np.float64)
    above = np.add.reduceat(ordered * sign, starts, axis=1)
    below = np.add.reduceat(ordered * ~sign, starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(1)
    return np.asarray(wins / (above.sum(1) * below.sum(1)))


def new_way(tasks: list[TransferConfig], head: str, output: Path) -> list[float]:
    """All tasks in one call; returns their macro AUROCs."""
    configs = [replace(t, output=str(output / t.name), probe=replace(t.probe, head=head)) for t in tasks]
    with contextlib.redirect_stdout(io.StringIO()):
        return [result["auroc"] for _, result in run_all(configs, print)]


def write_encoder(config: TransferBenchConfig, folder: Path) -> None:
    """A ResNet-18 with random weights."""
    architecture = {"name": "resnet18", "args": {"width": config.width}}
    scaling = {"mode": "fixed", "mean_mv": [0.0] * 12, "std_mv": [0.3] * 12}
    described = EncoderConfig(architecture, 0, 100.0, list(CANONICAL), LENGTH, scaling)  # type: ignore[arg-type]
    encoder = initialise(described, 0)
    save_weights(folder / WEIGHTS, encoder.state_dict())
    write_text(folder / CONFIG, replace(described, dim=encoder.dim).to_json())


def write_data(config: TransferBenchConfig, root: Path) -> None:
    """Records of `WAVES` sines of random heights in noise; a task's classes are fifths of a random sum of heights."""
    geometry, rng = Geometry(12, LENGTH, 256), np.random.default_rng(0)
    root.mkdir(parents=True)
    shards, columns = [], dict[str, list]()
    count = sum(config.records)
    heights = rng.uniform(0, 1, (count, WAVES))
    waves = np.sin(np.arange(LENGTH) * np.geomspace(0.05, 1.5, WAVES)[:, None])
    row = 0
    for ordinal, (split, size) in enumerate(zip(SPLITS, config.records)):
        with open(root / f"{split}-000000.tar", "wb") as file:
            writer = ShardWriter(file, geometry, ordinal)
            for _ in range(size):
                signal = 300 * heights[row] @ waves + rng.normal(0, 200, (12, LENGTH))
                writer.add(signal.astype(DTYPE), metadata_bytes({}, 256) or b"")
                row += 1
            digest = writer.close()
        path = root / f"{split}-000000.tar"
        shards.append(Shard(path.name, split, size, path.stat().st_size, digest))
    columns["patient"] = [1000 + i // 2 for i in range(count)]
    columns["sex"] = rng.choice(["female", "male"], count).tolist()
    columns["age"] = rng.integers(18, 90, count).astype(np.float32).tolist()
    columns["source"] = ["simulated"] * count
    for t in range(config.tasks):
        told = heights @ rng.normal(size=WAVES) + rng.normal(0, 0.2, count)
        columns[f"task{t}"] = [f"c{k}" for k in np.searchsorted(np.quantile(told, [0.2, 0.4, 0.6, 0.8]), told)]
    pq.write_table(pa.table(columns), root / SAMPLES)
    leads = list(CANONICAL)
    mark = fingerprint(shards, geometry, 100.0, leads, 1.0)
    scale = [0.0] * 12, [1.0] * 12
    manifest = Manifest(mark, 100.0, leads, LENGTH, 1.0, 256, shards, *scale, True, "public")
    (root / MANIFEST).write_text(manifest.to_json())


if __name__ == "__main__":
    command(main)
