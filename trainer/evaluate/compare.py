"""Compares results: their scores side by side, and paired differences on the same test records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluate.metrics import MAIN, Predicted, ranked
from trainer.evaluate.result import PREDICTIONS
from trainer.evaluate.scores import interval, one_hot, over_columns, scorable
from umbra.config import check_fields, load, setting
from umbra.errors import UserError
from umbra.files import claim_folder, damaged, read_json, sha256
from umbra.layers import refuse_option
from umbra.parquet import Table

USAGE = "name the results to compare: python -m trainer.transfer compare RESULT.json ..."
FIX = "give result.json files that `python -m trainer.transfer` wrote"
AGAIN = "evaluate again"
FORMATS = ("text", "markdown", "csv")


@dataclass
class CompareConfig:
    """How to compare results."""

    reference: str = ""
    """The result.json that the others of its task are compared with (empty: the first of each task)."""
    format: str = setting("text", choices=FORMATS)
    """What is printed: `text`, `markdown` or `csv`."""
    output: str = ""
    """A folder for comparison.md, comparison.csv and forest.png (empty: nothing is written)."""
    bootstrap: int = setting(2000, ">= 2 and <= 1000000")
    """Bootstrap resamples of the test patients."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class Scored:
    """A result.json: `value` of its main figure (`metric`) with interval, None where there is none."""

    path: Path
    task: str
    kind: str
    metric: str
    encoder: str
    mode: str
    fraction: float
    seed: int
    draw: int
    value: float
    low: float | None
    high: float | None
    content: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """`other` minus `reference` in one figure, on the same test records; `why`: the reason why there is none."""

    reference: Scored
    other: Scored
    figure: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    records: int = 0
    patients: int = 0
    why: str = ""


def parse(words: Sequence[str]) -> tuple[CompareConfig, list[Scored]]:
    """The config and the results of a command line. Raises `UserError` for a mistake in it or a damaged result."""
    paths = [word for word in words if _is_path(word)]
    keys = ["format=markdown" if word == "--markdown" else word for word in words if word not in paths]
    for word in keys:
        refuse_option(word, ["--markdown"])
    config = load(CompareConfig, None, keys)
    check_fields(config)
    if not paths:
        raise UserError(USAGE)
    if config.output:
        claim_folder(config.output, "output")
    results = [read_result(Path(path)) for path in paths]
    if config.reference and Path(config.reference).resolve() not in [r.path.resolve() for r in results]:
        raise UserError(f"reference={config.reference} is not among the results: name it there as well")
    return config, results


def _is_path(word: str) -> bool:
    """Whether a word is no option and no `key=value`; folders may have names such as `fraction=0.1`."""
    key, sign, _ = word.partition("=")
    return not word.startswith("-") and (not sign or "/" in key or Path(word).is_file())


def read_result(path: Path) -> Scored:
    """Reads a result.json, also of an older version. Raises `UserError` if it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} does not exist: {FIX}")
    content = read_json(path, FIX)
    kind = content.get("kind", "classes")
    metric = content.get("metric", "auroc")
    if kind not in MAIN or metric != MAIN[kind]:
        raise damaged(path, f"kind {kind!r} with metric {metric!r}", FIX)
    for key, wanted in (("task", str), ("encoder", str), ("fraction", int | float), (metric, int | float)):
        if not isinstance(content.get(key), wanted):
            raise damaged(path, f"'{key}' is {content.get(key)!r}" if key in content else f"it lacks '{key}'", FIX)
    ends = [content.get(key) for key in ("low", "high")]
    low, high = (float(end) if isinstance(end, int | float) else None for end in ends)
    mode, seed, draw = str(content.get("mode", "probe")), int(content.get("seed", 0)), int(content.get("draw", 0))
    return Scored(
        path, content["task"], kind, metric, content["encoder"], mode, content["fraction"], seed, draw,
        float(content[metric]), low, high, content,
    )  # fmt: skip


def differences(config: CompareConfig, results: Sequence[Scored]) -> list[Difference]:
    """The paired differences of each task with several results to its reference."""
    found: list[Difference] = []
    for task in dict.fromkeys(r.task for r in results):
        mine = [r for r in results if r.task == task]
        named = [r for r in mine if config.reference and r.path.resolve() == Path(config.reference).resolve()]
        reference = (named or mine)[0]
        for other in (r for r in mine if r is not reference):
            found += difference(config, reference, other)
    return found


def difference(config: CompareConfig, reference: Scored, other: Scored) -> list[Difference]:
    """The differences in each figure with an interval: both are scored in the same patient resamples."""

    def without(why: str) -> list[Difference]:
        return [Difference(reference, other, reference.metric, why=why)]

    if reference.kind != other.kind:
        return without(f"one has kind={reference.kind}, the other kind={other.kind}")
    if (one := _data(reference)) != (two := _data(other)) and one and two:
        return without("tested on another data set")
    tables = [_read(r) for r in (reference, other)]
    if None in [t and t[0] for t in tables]:
        return without(f"no {PREDICTIONS} beside one of them")
    (names, rows, first), (others, other_rows, second) = tables  # type: ignore[misc]
    if not np.array_equal(rows, other_rows):
        return without("tested on different records")
    columns = [n for n in names if n in others]
    picked = [[of.index(n) for n in columns] for of in (names, others)]
    first, second = (Predicted(d.target[:, k], d.prediction[:, k], d.patient) for d, k in zip((first, second), picked))
    if not columns or not np.array_equal(first.target, second.target):
        return without("tested with different labels")
    if reference.kind != "number" and not scorable(first.target):
        return without("no class of both can be scored")
    scored = [ranked(reference.kind, d, config.bootstrap, config.seed)[0] for d in (first, second)]
    out = []
    for figure, (value, resampled) in scored[0].items():
        other_value, other_resampled = scored[1][figure]
        low, high = interval(over_columns(other_resampled) - over_columns(resampled))
        gap = float(other_value.mean() - value.mean())
        out.append(Difference(reference, other, figure, gap, low, high, len(rows), len(np.unique(first.patient))))
    return out


def _data(result: Scored) -> str:
    data = result.content.get("data")
    return str(data.get("fingerprint", "")) if isinstance(data, dict) else ""


def _read(result: Scored) -> tuple[list[str], np.ndarray, Predicted] | None:
    """(names, sorted rows, targets and predictions in their order) of the predictions beside a result; None without."""
    path = result.path.parent / PREDICTIONS
    if not path.is_file():
        return None
    said = result.content.get("predictions")
    if isinstance(said, dict) and said.get("sha256") != sha256(path):
        raise UserError(f"{path} has been changed since {result.path} was written: {AGAIN}")
    table = Table(path, AGAIN).read().sort_by("row")
    names = [name.removeprefix("p_") for name in table.column_names if name.startswith("p_")]
    prediction = np.column_stack([table.column(f"p_{name}").to_numpy() for name in names])
    if result.kind == "classes":
        number = {name: k for k, name in enumerate(names)}
        label = np.array([number.get(name, -1) for name in table.column("label").to_pylist()])
        target = one_hot(label, len(names)).astype(np.float32)
    else:
        target = np.column_stack([table.column(f"y_{name}").to_numpy() for name in names])
    rows, patient = (table.column(name).to_numpy() for name in ("row", "patient"))
    return names, rows, Predicted(target, prediction, patient)
