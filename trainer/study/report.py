"""Writes the results of a study: results.json, table.md, figure.png."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.evaluate.result import plain
from trainer.study.config import StudyConfig
from trainer.study.figure import study_figure
from trainer.study.pooling import compare
from trainer.study.steps import STEPS, Note
from umbra.files import read_json_lines, read_text, write_text

RESULTS, TABLE, FIGURE = "results.json", "table.md", "figure.png"


def report(config: StudyConfig, output: Path) -> None:
    """Writes results.json, table.md and figure.png, and prints the table."""
    rows, differences = compare(config)
    noted = read_json_lines(output / STEPS, Note)
    content = {"name": config.name, "rows": rows, "differences": differences, "cost_seconds": cost(noted)}
    write_text(output / TABLE, markdown(config, rows, differences, noted))
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


def markdown(config: StudyConfig, rows: list[dict], differences: list[dict], noted: list[Note]) -> str:
    """The results as Markdown: a table of scores, one of differences, the cost, the commands of one rotation."""
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
        "Scores are pooled as ranks within each rotation, since each rotation has its own probe; the last two "
        "columns pool the raw probabilities, and average over the rotations. Intervals: 95 %, "
        f"{config.bootstrap} resamples of the test patients, the same for all methods; they do not include the "
        "variation between seeds and training sets. Resolvable: 2.8 x the standard error of the paired difference "
        "(80 % power, 5 %)."
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
