"""Methods x rotations x seeds x tasks x fractions -> one table, one figure.

`python -m trainer.study configs/study/ptbxl100-first.yaml data=FOLDER output=OUT`: shards the data of each rotation of
its folds, pre-trains each method, exports the encoders and tests them (`trainer.transfer`). Each step that
finishes leaves a file; running the same command again skips those steps.
"""

from __future__ import annotations

import signal
import sys

from trainer.study.config import CONFIG, StudyConfig, keep_config
from trainer.study.report import report
from trainer.study.rotation import run_rotation
from trainer.study.steps import Steps
from umbra.config import command, load, split_words
from umbra.files import claim_folder, make_folder

CONFIGS = {"": "trainer.study.config:StudyConfig"}


def main(argv: list[str]) -> None:
    config = load(StudyConfig, *split_words(argv))
    config.check()
    claim_folder(config.output, "output", (CONFIG,))
    output = make_folder(config.output, "output")
    keep_config(config, output)
    steps = Steps(output, config.minutes * 60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for rotation in config.rotations:
        run_rotation(config, rotation, steps)
    report(config, output)


if __name__ == "__main__":
    command(main)
