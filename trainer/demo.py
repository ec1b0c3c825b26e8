"""The page at the end of `make demo`: `python -m trainer.demo OUT` writes `OUT/index.html`.

One self-contained file: the scores of the linear probes in `OUT/transfer/`, curves and masks of the run in `OUT/run`
(learned masks; that with random ones is `OUT/random-masks`), and commands for what to do next.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.evaluate.compare import CompareConfig, Scored, differences, read_result
from trainer.evaluate.comparison import ended
from trainer.evaluate.result import RESULT
from trainer.observe.page import SLIDER, Watched, curves, figures, masks, read
from umbra.config import command, load
from umbra.drawing.webpage import Span, document, escaped, table
from umbra.errors import UserError
from umbra.files import write_text

PAGE = "index.html"
LEAST = 0.4  # AUROC at the left end of the drawn intervals
ENCODERS = {
    "run": "learned masks",
    "random-masks": "random masks",
    "random": "untrained",
}  # by the end of a folder's name


@dataclass
class DemoConfig:
    """Which demo is drawn."""

    output: str = ""
    """The output folder of `make demo`."""


CONFIGS = {"": "trainer.demo:DemoConfig"}


def main(argv: list[str]) -> None:
    words = [f"output={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else argv
    output = load(DemoConfig, None, words).output
    if not output:
        raise UserError("output is not set: python -m trainer.demo OUT")
    draw(Path(output))
    print(f"written: {Path(output) / PAGE}")


def draw(output: Path) -> None:
    """Writes the page of a demo. Raises `UserError` if a step has not ended, naming what is missing."""
    found = [p for p in output.glob(f"transfer/*/{RESULT}") if p.parent.name.partition("-")[2] in ENCODERS]
    results = [read_result(path) for path in sorted(found, key=_order)]
    if not results:
        raise UserError(f"{output} has no transfer/*/{RESULT}: give the output folder of a `make demo` that has ended")
    write_text(output / PAGE, render(read(output / "run"), results, output.resolve()))


def render(run: Watched, results: Sequence[Scored], output: Path) -> str:
    """The page; `output`: the absolute path of the demo, for its commands."""
    data = run.record.data
    body = (
        "<h1>Umbra demo</h1>"
        f"<p class=soft>An encoder pre-trained without labels on {data.get('samples', 0):,} ECGs of "
        f"{data.get('patients', 0):,} patients, seed {run.config.seed}.</p>"
        f"<h2>What it is worth</h2>{_scores(results)}"
        f"<h2>The run</h2>{figures(run)}{curves(run)}{masks(run)}"
        f"<h2>What to do next</h2>{_next(run, output)}"
    )
    return document("Umbra demo", body, script=SLIDER)


def _scores(results: Sequence[Scored]) -> str:
    rows = []
    for r in results:
        known = r.low is not None and r.high is not None
        ends = (_place(r.low or 0), _place(r.value), _place(r.high or 0))
        rows.append([r.task, _name(r), ended(r.value, r.low, r.high), Span(*ends) if known else ""])
    apart = [
        [d.other.task, f"{_name(d.reference)} - {_name(d.other)}", ended(-d.value, -d.high, -d.low, "+")]
        for d in differences(CompareConfig(), results)
        if d.figure == d.reference.metric and not d.why
    ]
    return (
        "<p>Macro AUROC of a linear probe on the features, all labels, test patients alone; the line is the 95 % "
        f"interval by a bootstrap of the patients, from {LEAST:g} to 1.</p>"
        + table(["task", "encoder", "macro AUROC", ""], rows)
        + ("<p>Differences, paired by patients:</p>" + table(["task", "", "difference"], apart) if apart else "")
        + "<p class=soft>Random masks: a random block as large in all ECGs, in as many steps; the masker has half of "
        "them. The untrained encoder has the "
        "same architecture and has seen nothing. One seed, a small network and synthetic ECGs unless they are "
        "yours: this shows that every step works, not how good the method is. On recordings of patients: "
        "docs/results/study.md.</p>"
    )


def _name(r: Scored) -> str:
    return ENCODERS[r.path.parent.name.removeprefix(f"{r.task}-")]


def _order(path: Path) -> tuple[str, int]:
    """Tasks by name, their encoders in the order of `ENCODERS`."""
    task, _, encoder = path.parent.name.partition("-")
    return task, list(ENCODERS).index(encoder)


def _place(auroc: float) -> float:
    return min(1.0, max(0.0, (auroc - LEAST) / (1 - LEAST)))


def _next(run: Watched, output: Path) -> str:
    """Commands that can be pasted into any shell: absolute paths, this environment's programs."""
    python, here = shlex.quote(sys.executable), Path.cwd()
    deepspeed, out = shlex.quote(str(Path(sys.executable).with_name("deepspeed"))), shlex.quote(str(output))
    probe, cfg = f"{python} -m trainer.transfer configs/transfer/rhythm.yaml", run.config
    sizes = [f"encoder.args.{key}={value}" for key, value in cfg.encoder.args.items()]
    sizes += [f"projector.{key}={getattr(cfg.projector, key)}" for key in ("hidden", "out")]
    steps = {
        "Load the encoder": [f"{python} -c \"import umbra; print(umbra.load_encoder('{output}/run/encoder'))\""],
        "Look at the data set, and at the run in detail": [
            f"{python} -m sharding report {out}/shards",
            f"{python} -m trainer.watch {out}/run",
        ],
        "Fine-tune with a tenth of the labels": [
            f"{probe} encoder={out}/run/encoder data={out}/shards output={out}/finetune mode=finetune fraction=0.1"
        ],
        "Pre-train by 3KG instead, and compare": [
            f"{deepspeed} --num_gpus {run.record.world or 2} trainer/pretrain.py configs/pretrain/3kg.yaml pair=halves "
            f"data.path={out}/shards run={out}/3kg epochs={cfg.epochs:g} seed={cfg.seed} "
            f"batch.global={cfg.batch.global_} {' '.join(sizes)}",
            f"{python} -m trainer.export run={out}/3kg",
            f"{probe} encoder={out}/3kg/encoder data={out}/shards seed={cfg.seed} output={out}/probe-of-3kg",
            f"{python} -m trainer.transfer compare {out}/transfer/rhythm-*/{RESULT} {out}/probe-of-3kg/{RESULT}",
        ],
        "See what would become of your own recordings": [
            f"UMBRA_KEY='a secret of your own' {python} -m sharding build configs/shard/wfdb.yaml input=RECORDINGS "
            f"output={out}/mine rate=100 seconds=10 --dry-run"
        ],
    }
    blocks = "".join(f"<h3>{escaped(title)}</h3><pre>{escaped(chr(10).join(c))}</pre>" for title, c in steps.items())
    return (
        f"<p>From any shell, after <code>cd {escaped(shlex.quote(str(here)))}</code>:</p>{blocks}"
        "<p>README.md has the rest; docs/README.md is the index of all pages.</p>"
    )


if __name__ == "__main__":
    command(main)
