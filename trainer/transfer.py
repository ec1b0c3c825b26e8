"""Evaluates an encoder with few labels: linear probe, fine-tuning, training from scratch.

`python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR|random data=DIR output=DIR [fraction=0.1]
[mode=probe|finetune|scratch] [seed=0] [like=DIR]`; `python -m trainer.transfer compare RESULT.json ...` tabulates.

Trains on a fraction of the train split, selects hyperparameters on `val` and tests once on `test`; writes result.json
and predictions.parquet to `output`. The tasks are in configs/transfer/, the keys in docs/keys/transfer.md.
"""

from __future__ import annotations

from pathlib import Path

from trainer import threads
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import device_of, open_encoder
from trainer.evaluate.reading import read_task
from trainer.evaluate.result import PREDICTIONS, RESULT, comparison, run, table
from umbra.config import command, load, split_words
from umbra.errors import UserError, nearest
from umbra.files import claim_folder

CONFIGS = {"": "trainer.evaluate.config:TransferConfig"}


def main(argv: list[str]) -> None:
    if argv and argv[0] == "compare":
        print(comparison(argv[1:]))
        return
    if argv and nearest(argv[0], ["compare"]):
        raise UserError(f"unknown command '{argv[0]}'; did you mean 'compare'?")
    config = load(TransferConfig, *split_words(argv))
    config.check()
    claim_folder(config.output, "output", (RESULT, PREDICTIONS))
    threads.settle()
    device_of(config.device)
    task = read_task(config)
    encoder = open_encoder(config, task.train)
    for note in task.notes:
        print(f"note: {note}")
    result = run(config, task, encoder)
    print(table(result))
    print(f"written: {Path(config.output) / RESULT}, {Path(config.output) / PREDICTIONS}")


if __name__ == "__main__":
    command(main)
