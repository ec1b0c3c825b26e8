"""What an encoder is worth where labels are scarce: linear probe, fine-tuning, training from scratch.

`python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR|random data=DIR output=DIR [fraction=0.1]
[mode=probe|finetune|scratch] [seed=0] [like=DIR]`; `python -m trainer.transfer compare RESULT.json ...` tabulates.

Trained on a fraction of the train split, settings chosen on `val`, tested once on `test`; result.json and
predictions.parquet land in `output`. The tasks are in configs/transfer/, the keys are described in trainer/transfer.py.
"""

from __future__ import annotations

from pathlib import Path

from trainer.evaluate.config import MODES, RANGES, TransferConfig
from trainer.evaluate.embed import device_of, open_encoder
from trainer.evaluate.result import PREDICTIONS, RESULT, comparison, run, table
from trainer.evaluate.task import read_task
from umbra.config import check_ranges, command, load, split_words
from umbra.errors import UserError
from umbra.files import claim_folder


def main(argv: list[str]) -> None:
    if argv and argv[0] == "compare":
        print(comparison(argv[1:]))
        return
    config = load(TransferConfig, *split_words(argv))
    _check(config)
    task = read_task(config)
    encoder = open_encoder(config, task.train)
    for note in task.notes:
        print(f"note: {note}")
    result = run(config, task, encoder)
    print(table(result))
    print(f"written: {Path(config.output) / RESULT}, {Path(config.output) / PREDICTIONS}")


def _check(config: TransferConfig) -> None:
    if not config.name:
        raise UserError("name the task first: python -m trainer.transfer configs/transfer/rhythm.yaml key=value ...")
    for key in ("encoder", "data", "output"):
        if not getattr(config, key):
            raise UserError(f"key '{key}' is needed: {key}={'DIR|random' if key == 'encoder' else 'DIR'}")
    if config.encoder == "random" and not config.like:
        raise UserError("encoder=random needs like=DIR, an encoder directory whose architecture it takes")
    if config.mode not in MODES:
        raise UserError(f"mode={config.mode}: known modes are {', '.join(MODES)}")
    check_ranges(config, RANGES)
    if not config.probe.C or not config.finetune.lr:
        raise UserError("probe.C and finetune.lr each need at least one value")
    claim_folder(config.output, "output")
    device_of(config.device)


# --- encoders --------------------------------------------------------------------------------------------------------


# --- the three ways to train -----------------------------------------------------------------------------------------


# --- one result ------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    command(main)
