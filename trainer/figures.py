"""Figures of finished runs.

`python -m trainer.figures masks RUN [ecgs=300]` draws ECGs with their masks and measures how much of each wave
they hide (trainer/evaluate/mask_lift.py),
`python -m trainer.figures why STUDY` says where masks fall in all runs of a study, and how hard their pairs were beside
the scores on its tasks (trainer/study/why.py),
`python -m trainer.figures curves OUT.png RUN [RUN ...]` plots the health of several runs.
"""

from __future__ import annotations

from pathlib import Path

from trainer import threads
from trainer.evaluate import mask_lift
from trainer.observe.curves import runs_together
from trainer.study import why
from umbra.config import command
from umbra.errors import UserError

CONFIGS = {"masks": "trainer.evaluate.mask_lift:MaskLiftConfig", "why": "trainer.study.why:WhyConfig"}


def main(argv: list[str]) -> None:
    if argv[:1] in (["masks"], ["why"]):
        threads.settle()
        return (mask_lift if argv[0] == "masks" else why).main(argv[1:])
    if argv[:1] == ["curves"] and len(argv) > 2 and not Path(argv[1]).is_dir():
        if Path(argv[1]).suffix.lower() != ".png":
            raise UserError(f"{argv[1]}: the figure is written as a PNG: give a name that ends in .png")
        runs_together(argv[2:], argv[1])
        return print(f"written: {argv[1]}")
    curves = "python -m trainer.figures curves OUT.png RUN [RUN ...]"
    raise UserError(f"say what to draw: {mask_lift.USAGE}, {why.USAGE}, or {curves}")


if __name__ == "__main__":
    command(main)
