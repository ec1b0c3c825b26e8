"""Evaluates an encoder with labels: linear probe, fine-tuning, training from scratch.

`python -m trainer.transfer configs/transfer/rhythm.yaml encoder=DIR|random data=DIR output=DIR [fraction=0.1]
[mode=probe|finetune|scratch] [seed=0] [like=DIR] [pretrained_on=DIR] [allow_leak=true]`; with several tasks (YAMLs) the
features are computed once and each has its folder in `output`. `python -m trainer.transfer compare RESULT.json ...
[output=DIR] [--markdown]` tabulates results and gives paired differences.

Trains on a fraction of the train split, selects hyperparameters on `val` and tests once on `test`; writes result.json,
predictions.parquet and, of what was trained, model/ to `output`. The tasks are in configs/transfer/, the keys in
docs/keys/transfer.md.
"""

from __future__ import annotations

from pathlib import Path

from trainer import threads
from trainer.evaluate.comparison import comparison
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import device_of
from trainer.evaluate.keep import MODEL
from trainer.evaluate.many import run_all
from trainer.evaluate.result import PREDICTIONS, RESULT, written
from trainer.evaluate.show import table
from umbra.config import command, load, split_paths
from umbra.errors import UserError, nearest
from umbra.files import claim_folder

ALLOW = "--allow-leak"  # another spelling of allow_leak=true
# keys of what several tasks share: the encoder, what it sees, where its features are, and what it was trained on
OF_ALL = ["encoder", "like", "mode", "leads", "seconds", "data", "device", "features"]
OF_ALL += ["pretrained_on", "also_trained_on", "allow_leak"]
CONFIGS = {"": "trainer.evaluate.config:TransferConfig", "compare": "trainer.evaluate.compare:CompareConfig"}


def main(argv: list[str]) -> None:
    if argv and argv[0] == "compare":
        print(comparison(argv[1:]))
        return
    if argv and nearest(argv[0], ["compare"]):
        raise UserError(f"unknown command '{argv[0]}'; did you mean 'compare'?")
    configs = read_configs(argv)
    for config in configs:
        claim_folder(config.output, "output", (RESULT, PREDICTIONS, MODEL))
        refuse_model(config)
    threads.settle()
    device_of(configs[0].device)
    for config, result in run_all(configs, print):
        print(table(result))
        print("written: " + ", ".join(str(Path(config.output) / name) for name in written(config)))


def refuse_model(config: TransferConfig) -> None:
    """Raises `UserError` if a probe would write its result beside the model of an earlier fine-tuning."""
    if config.mode == "probe" and (model := Path(config.output) / MODEL).exists():
        raise UserError(
            f"output={config.output} holds {model} of an earlier training, which the result of a probe would not "
            "describe: choose another output=DIR, or delete it"
        )


def read_configs(argv: list[str]) -> list[TransferConfig]:
    """A config for each task (YAML) of a command line; of several tasks each has its folder in `output`."""
    paths, keys = split_paths(argv, [ALLOW])
    keys += ["allow_leak=true"] * (ALLOW in argv)
    configs = [load(TransferConfig, path, keys) for path in paths] or [load(TransferConfig, None, keys)]
    for config in configs:
        config.check()
    names = [config.name for config in configs]
    if len(configs) > 1:
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UserError(
                f"two tasks are named '{twice}': give each a `name` of its own in its YAML, not on the line"
            )
        for config in configs:
            _refuse_another_encoder(configs[0], config)
            if Path(config.name).name != config.name:
                raise UserError(f"task '{config.name}' cannot name a folder: give it a `name` without /")
            config.output = str(Path(config.output) / config.name)
    return configs


def _refuse_another_encoder(first: TransferConfig, config: TransferConfig) -> None:
    """Raises `UserError` if a task's YAML sets another encoder, view of the records or data: all tasks share those."""
    for key in OF_ALL:
        one, other = getattr(first, key), getattr(config, key)
        if one != other:
            raise UserError(
                f"task '{first.name}' has {key}={one!r}, task '{config.name}' {other!r}: tasks that are evaluated "
                f"together share it; set {key} on the line, or evaluate them one by one"
            )


if __name__ == "__main__":
    command(main)
