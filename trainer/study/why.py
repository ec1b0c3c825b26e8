"""Why do the methods of a study differ? `python -m trainer.figures why STUDY [key=value]`, where STUDY is its output.

Where masks fall, on held-out ECGs of all rotations (`hidden`), and how hard the pairs were, against the scores on the
tasks (`hardness`), of those methods that are done. Writes why.md, why.json and why.png to the study's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.evaluate.lift import Lift
from trainer.evaluate.result import plain
from trainer.study import hardness, hidden
from trainer.study.cells import Trial
from trainer.study.config import CONFIG, StudyConfig
from trainer.study.trial import is_done
from umbra.config import check_fields, load
from umbra.errors import UserError
from umbra.files import write_text

USAGE = "python -m trainer.figures why STUDY [rotations=[0,1]] [split=val] [ecgs=500] [by=rhythm] [lead=II]"
MASKS = (
    "The hidden fraction of a wave over the hidden fraction of the whole ECG: 1 is chance. ECGs of the split "
    "`{split}` of rotations {rotations}, each under the masks of its own rotation's run, all together; the mean over "
    "seeds {seeds}. Intervals: 95 % by patients; they do not include the variation between seeds and training sets. "
    "Controls: the same masks on another ECG, and random blocks that hide as much."
)
PAIRS = (
    "Pairs found and effective rank are of held-out patients at the end of pre-training, each method on pairs of its "
    "own kind. Spearman: how far the order of the methods by that figure is their order by the score; then the range "
    "in which it is when any one method is left out. The methods share data, folds and most settings, and were "
    "chosen, not drawn: there is no p-value, and a correlation is no cause."
)
DRAWS = " With fewer labels a score is the mean over {} draws of them."


@dataclass
class WhyConfig(hidden.HeldOut):
    """Which study is explained, and on which ECGs."""

    study: str = ""
    """The output folder of the study, which may still be running."""
    rotations: list[int] = field(default_factory=list)
    """The rotations that are looked at (empty: all of the study)."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not self.study:
            raise UserError(f"study is not set: {USAGE}")
        check_fields(self)


def main(argv: Sequence[str]) -> None:
    words = [f"study={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else argv
    cfg = load(WhyConfig, None, words)
    cfg.check()
    output = Path(cfg.study)
    config = study_of(output, cfg.rotations)
    methods = config.compared
    masked = hidden.maskers(config, methods)
    lifts = hidden.lifts_of(config, masked, cfg) if masked else {}
    rows = hardness.points(config)
    content: dict[str, Any] = {"name": config.name, "methods": methods, "rotations": config.rotations}
    content["lifts"] = [{"method": method, **asdict(row)} for method, of in lifts.items() for row in of]
    content |= {"pairs": rows, "correlations": hardness.correlations(rows)}
    text = markdown(config, cfg, lifts, rows)
    write_text(output / "why.json", json.dumps(plain(content), indent=1) + "\n")
    write_text(output / "why.md", text)
    written = ["why.md", "why.json"]
    if rows:
        hardness.draw(rows, output / "why.png")
        written.append("why.png")
    print(f"{text}\nwritten: {', '.join(str(output / name) for name in written)}")


def study_of(output: Path, rotations: Sequence[int] = ()) -> StudyConfig:
    """The study in a folder, wherever it was made, with those methods only that are done in all seeds and `rotations`.

    Raises `UserError` if there is no study, or none of its methods is done.
    """
    if not (output / CONFIG).is_file():
        raise UserError(f"study={output} has no {CONFIG}: give the output folder of a study")
    config = replace(load(StudyConfig, output / CONFIG), output=str(output))
    if unknown := [rotation for rotation in rotations if rotation not in config.rotations]:
        raise UserError(f"rotations={list(rotations)}: the study has no {unknown[0]}, only {config.rotations}")
    config = replace(config, rotations=list(rotations) or config.rotations)
    done, first = _done(config), _done(replace(config, draws=1))
    if len(first) > len(done):
        print(f"# not all of {config.draws} draws are done: the first of each is looked at")
        config, done = replace(config, draws=1), first
    if not done:
        raise UserError(f"{output}: no method is done in all of rotations {config.rotations}: give rotations=[...]")
    if left := [m for m in config.compared if m not in done]:
        print(f"# not done in all of rotations {config.rotations} and left out: {', '.join(left)}")
    return replace(config, methods=done, equal_compute=[])


def _done(config: StudyConfig) -> list[str]:
    return [m for m in config.compared if all(is_done(config, trial) for trial in _trials(config, m))]


def _trials(config: StudyConfig, method: str) -> list[Trial]:
    return [Trial(rotation, method, seed) for rotation in config.rotations for seed in config.seeds]


def markdown(
    config: StudyConfig, cfg: WhyConfig, lifts: Mapping[str, Sequence[Lift]], rows: Sequence[dict[str, Any]]
) -> str:
    """Where masks fall, and how hard pairs were; a part without methods is left out."""
    parts = [f"# Why? {config.name}"]
    if lifts:
        said = MASKS.format(split=cfg.split, rotations=config.rotations, seeds=config.seeds)
        parts += ["## Where masks fall", said, hidden.markdown(lifts)]
    if rows:
        parts += [
            "## How hard the pairs were",
            PAIRS + DRAWS.format(config.draws) * (config.draws > 1),
            hardness.markdown(rows),
            "![](why.png)",
        ]
    return "\n\n".join(parts) + "\n"
