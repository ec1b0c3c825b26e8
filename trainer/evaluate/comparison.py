"""A comparison as text, Markdown, CSV and a forest plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from trainer.evaluate.compare import CompareConfig, Difference, Scored, differences, parse
from trainer.evaluate.metrics import SHOWN
from trainer.evaluate.task import choice
from umbra.files import make_folder, write_text

FILES = ("comparison.md", "comparison.csv", "forest.png")


def comparison(words: Sequence[str]) -> str:
    """Compares the results that the words of a command line name; returns what is to be printed.

    With `output`, also writes comparison.md, comparison.csv and forest.png there.
    """
    config, results = parse(words)
    found = differences(config, results)
    texts = {"text": as_text, "markdown": as_markdown, "csv": as_csv}
    if config.output:
        from trainer.evaluate.forest import forest

        output = make_folder(config.output, "output")
        write_text(output / "comparison.md", as_markdown(config, results, found))
        write_text(output / "comparison.csv", as_csv(config, results, found))
        forest(results, found, output / "forest.png")
    said = texts[config.format](config, results, found).rstrip("\n")
    if config.output and config.format == "text":
        said += "\nwritten: " + ", ".join(str(Path(config.output) / name) for name in FILES)
    return said


def as_text(config: CompareConfig, results: Sequence[Scored], found: Sequence[Difference]) -> str:
    names = names_of(results)
    lines = [f"{'task':<12}{'labels':>8}  {'macro AUROC (95 % by patients)':<32}encoder"]
    for r in results:
        name = "" if r.metric == "auroc" else f"{SHOWN[r.metric]} "
        lines.append(f"{r.task:<12}{r.fraction:>8.0%}  {name + ended(r.value, r.low, r.high):<32}{names[r.path]}")
    shown = [d for d in found if d.figure == d.reference.metric]
    if shown:
        lines += ["", f"{'task':<12}{'difference (95 %, paired by patients)':<42}"]
    for d in shown:
        value = d.why or f"{SHOWN[d.figure]} {ended(d.value, d.low, d.high, '+')}"
        lines.append(f"{d.other.task:<12}{value:<42}{names[d.other.path]} - {names[d.reference.path]}")
    return "\n".join(lines) + "\n"


def as_markdown(config: CompareConfig, results: Sequence[Scored], found: Sequence[Difference]) -> str:
    body = [
        [
            r.task,
            r.mode,
            _cell(r.encoder),
            f"{r.fraction:.4g}",
            choice(r.seed, r.draw),
            SHOWN[r.metric],
            ended(r.value, r.low, r.high),
        ]
        for r in results
    ]
    parts = [_table(["task", "mode", "encoder", "labels", "seed", "figure", "value (95 %)"], body)]
    if found:
        names = names_of(results)
        body = [
            [d.other.task, _cell(names[d.other.path]), _cell(names[d.reference.path]), SHOWN[d.figure]]
            + ([d.why, "", ""] if d.why else [ended(d.value, d.low, d.high, "+"), str(d.records), str(d.patients)])
            for d in found
        ]
        head = ["task", "of", "minus", "figure", "difference (95 %)", "test records", "patients"]
        parts += [_table(head, body)]
        parts += [f"Intervals: {config.bootstrap} resamples of the test patients, the same for both of a difference."]
    return "\n\n".join(parts) + "\n"


def as_csv(config: CompareConfig, results: Sequence[Scored], found: Sequence[Difference]) -> str:
    """One table: a line for each score and for each difference (`minus` names its reference)."""
    out = io.StringIO()
    head = ["task", "figure", "value", "low", "high", "result", "encoder", "mode", "labels", "seed", "minus", "records"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, "patients", "why", "draw"])
    for r in results:
        of = [r.path, r.encoder, r.mode, r.fraction, r.seed]
        writer.writerow([r.task, r.metric, *map(_number, (r.value, r.low, r.high)), *of, "", "", "", "", r.draw])
    for d in found:
        of = [d.other.path, d.other.encoder, d.other.mode, d.other.fraction, d.other.seed, d.reference.path]
        counts = ["", ""] if d.why else [d.records, d.patients]
        writer.writerow(
            [d.other.task, d.figure, *map(_number, (d.value, d.low, d.high)), *of, *counts, d.why, d.other.draw]
        )
    return out.getvalue()


def names_of(results: Sequence[Scored]) -> dict[Path, str]:
    """Each result in few words: its encoder and mode and, where others of its task have the same, its share of the
    labels, its seed, and at last its path."""
    found = {}
    for r in results:
        like = [o for o in results if (o.task, o.encoder, o.mode) == (r.task, r.encoder, r.mode)]
        words = [r.encoder if r.mode == "probe" else f"{r.encoder} ({r.mode})"]
        if len({o.fraction for o in like}) > 1:
            words.append(f"{r.fraction:.4g} of the labels")
        like = [o for o in like if o.fraction == r.fraction]
        if len({(o.seed, o.draw) for o in like}) > 1:
            words.append(f"seed {choice(r.seed, r.draw)}")
        if len({o.path for o in like if (o.seed, o.draw) == (r.seed, r.draw)}) > 1:
            words.append(str(r.path))
        found[r.path] = ", ".join(words)
    return found


def ended(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A value with its interval, which is missing without resamples."""
    known = low is not None and high is not None and math.isfinite(low + high)
    ends = f"({low:{sign}.3f} to {high:{sign}.3f})" if known else "(no interval)"
    return f"{value:{sign}.3f} {ends}"


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
