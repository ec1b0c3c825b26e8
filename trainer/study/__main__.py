"""Methods x rotations x seeds x tasks x fractions -> one table, one figure.

`python -m trainer.study configs/study/paper.yaml data=FOLDER output=OUT`: shards the data of each rotation of
its folds, pre-trains each method, exports the encoders and tests them (`trainer.transfer`). Each step that
finishes leaves a file; running the same command again skips those steps. `workers=N` runs N trials at a time; several
machines share a study by `part=I parts=N` (slurm/study.sbatch), and the one that does the last trial writes the table.
"""

from __future__ import annotations

import signal
import sys

from trainer.study.config import CONFIG, StudyConfig, keep_config
from trainer.study.share import Share
from trainer.study.steps import Steps
from trainer.study.workers import run_workers
from umbra.config import command, load, split_words
from umbra.files import claim_folder, make_folder
from umbra.lock import lock

CONFIGS = {"": "trainer.study.config:StudyConfig"}


def main(argv: list[str]) -> int:
    config = load(StudyConfig, *split_words(argv))
    config.check()
    claim_folder(config.output, "output", (CONFIG,))
    output = make_folder(config.output, "output")
    with lock(output / ".config.lock"):
        keep_config(config, output)
    share = Share(config, output)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    well = config.workers == 1 or run_workers(config, argv)
    share.work(Steps(output, config.minutes * 60))
    return 0 if share.end() or well else 2


if __name__ == "__main__":
    command(main)
