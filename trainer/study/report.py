"""Writes the results of a study: results.json, table.md, figure.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.evaluate.metrics import SHOWN
from trainer.evaluate.result import plain
from trainer.study.comparing import compare
from trainer.study.compute import pretraining
from trainer.study.config import EQUAL, StudyConfig
from trainer.study.figure import study_figure
from trainer.study.pretext import FIGURES, pretext
from trainer.study.steps import STEPS, Note
from umbra.files import read_json_lines, read_text, write_text

RESULTS, TABLE, FIGURE = "results.json", "table.md", "figure.png"
TOOK = (
    "Means of a method's runs: ECGs trained on (each as often as it was), operations of the networks, wall seconds of "
    "the command that ended the run."
)
AGAIN = f" `METHOD{EQUAL}` is METHOD in as many epochs as take the operations of the reference."


def report(config: StudyConfig, output: Path) -> None:
    """Writes results.json, table.md and figure.png, and prints the table."""
    rows, differences = compare(config)
    noted = read_json_lines(output / STEPS, Note)
    said = pretext(config)
    took = pretraining(config, noted)
    content: dict[str, Any] = {"name": config.name, "rows": rows, "differences": differences, "pretext": said}
    content |= {"pretraining": took, "cost_seconds": cost(noted)}
    write_text(output / TABLE, markdown(config, rows, differences, noted, said, took))
    study_figure(rows, output / FIGURE)
    write_text(output / RESULTS, json.dumps(plain(content), indent=1) + "\n")
    show(output)


def show(output: Path) -> None:
    """Prints the table that was written."""
    print(read_text(output / TABLE, "run the same study again"))
    print(f"written: {output / RESULTS}, {output / TABLE}, {output / FIGURE}", flush=True)


def cost(noted: list[Note]) -> dict[str, float]:
    """Wall time in seconds by kind of step; pre-training and evaluation also by method."""
    total: dict[str, float] = {}
    for step in noted:
        parts = step["step"].split("/")
        keys = [parts[0]] + ([f"{parts[0]} {parts[2]}"] if len(parts) > 2 else [])
        for key in keys:
            total[key] = round(total.get(key, 0.0) + step["seconds"], 2)
    return dict(sorted(total.items()))


def markdown(
    config: StudyConfig,
    rows: list[dict],
    differences: list[dict],
    noted: list[Note],
    said: list[dict],
    took: list[dict],
) -> str:
    """The results as Markdown: scores, differences (those named beforehand first), what the runs `said` of the pretext
    task and what they `took`, cost, commands of one rotation."""
    primary = [d for d in differences if d["primary"]]
    parts = [f"# {config.name}", _explained(config, rows, len(primary))]
    if primary:
        parts += [f"## Primary comparisons: {config.reference} minus", _difference_table(primary)]
    parts += ["## Scores", _score_table(rows)]
    if rest := [d for d in differences if not d["primary"]]:
        title = "Exploratory comparisons" if config.primary.count else "Differences"
        parts += [f"## {title}: {config.reference} minus", _difference_table(rest)]
    if said:
        parts += ["## The pretext task at the end of pre-training", _pretext_table(said)]
    if took:
        parts += ["## What pre-training took", TOOK + AGAIN * bool(config.equal_compute), _took_table(took)]
    parts += ["## Cost", table(["part", "wall seconds"], [[k, f"{v:.0f}"] for k, v in cost(noted).items()])]
    commands = [step["command"] for step in noted if _shown(step["step"], config)]
    parts += [f"## Commands (rotation {config.rotations[0]})", "```sh\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _shown(step: str, config: StudyConfig) -> bool:
    """Whether a step is of the first rotation, and no further draw of the labels, whose command differs by `draw`."""
    _, rotation, *rest = step.split("/")
    return rotation == str(config.rotations[0]) and len(rest) < 5


def _explained(config: StudyConfig, rows: list[dict], primary: int) -> str:
    tests = {row["task"]: row for row in rows}
    counts = "; ".join(
        f"{task}: {row['records']} records of {row['patients']} patients ("
        + ", ".join(f"{c} {n}" for c, n in row["test_counts"].items())
        + ")"
        for task, row in tests.items()
    )
    seeds = (
        "and the variation between seeds, whose variance is pooled over the methods; not that between training sets"
        if len(config.seeds) > 1
        else "they do not include the variation between seeds and training sets"
    )
    several = any(config.draws_of(fraction) > 1 for fraction in config.fractions)
    draws = f" With fewer labels a seed's score is the mean over {config.draws} draws of them." * several
    holm = f" p (Holm) is adjusted for all {config.primary.count} primary comparisons, of which {primary} are here."
    return (
        f"{len(config.rotations)} rotations of {config.folds} folds, seeds {config.seeds}. "
        f"Pooled {config.judge} records: {counts}. "
        "Probabilities are pooled as ranks within each rotation, since each has its own probe, numbers as they are; "
        "the last two columns pool the raw predictions, and average over the rotations. Intervals: 95 %, "
        f"{config.bootstrap} resamples of the test patients, the same for all methods, {seeds}. Resolvable: 2.8 x the "
        f"standard error of the paired difference (80 % power, 5 %).{draws}{holm * bool(config.primary.count)}"
    )


def _score_table(rows: list[dict]) -> str:
    head = ["task", "labels", "method", "figure", "value", "95 %", "by seed", "raw predictions pooled"]
    body = [
        [
            row["task"],
            f"{100 * row['fraction']:.3g}%",
            row["method"],
            SHOWN[row["metric"]],
            f"{row['value']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            " ".join(f"{value:.3f}" for value in row["by_seed"]),
            f"{row['pooled_predictions']:.3f}",
            f"{row['mean_over_rotations']:.3f}",
        ]
        for row in rows
    ]
    return table([*head, "mean of rotations"], body)


def _difference_table(differences: list[dict]) -> str:
    adjusted = any("p_holm" in d for d in differences)
    head = ["task", "labels", "other", "figure", "difference", "95 %", "resolvable", "p"]
    body = [
        [
            d["task"],
            f"{100 * d['fraction']:.3g}%",
            d["other"],
            SHOWN[d["metric"]],
            f"{d['difference']:+.3f}",
            f"{d['low']:+.3f} to {d['high']:+.3f}",
            f"{d['resolvable']:.3f}",
            _p(d["p"]),
            *([_p(d.get("p_holm"))] if adjusted else []),
        ]
        for d in differences
    ]
    return table([*head, *(["p (Holm)"] if adjusted else [])], body)


def _pretext_table(said: list[dict]) -> str:
    """A column for each figure that any method has."""
    names = [n for n in dict.fromkeys(name for row in said for name in row) if n not in ("method", "runs")]
    body = [[row["method"], str(row["runs"]), *(f"{row[n]:.3g}" if n in row else "" for n in names)] for row in said]
    return table(["method", "runs", *(FIGURES.get(n, n) for n in names)], body)


def _took_table(took: list[dict]) -> str:
    def cell(row: dict, name: str, form: str, by: float = 1.0) -> str:
        return f"{row[name] / by:{form}}" if name in row else ""

    head = ["method", "runs", "ECGs", "TFLOP", "of the reference", "wall seconds"]
    body = [
        [
            row["method"],
            str(row["runs"]),
            cell(row, "ecgs", ",.0f"),
            cell(row, "flops", ".4g", 1e12),
            cell(row, "of_reference", ".2f"),
            cell(row, "seconds", ",.0f"),
        ]
        for row in took
    ]
    return table(head, body)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}"


def table(head: list[str], body: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
