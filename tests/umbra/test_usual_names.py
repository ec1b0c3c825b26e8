"""What a user types first, in the words of other tools: the line names the key of this one."""

import pytest

from sharding.options import BuildConfig
from trainer.config import PretrainConfig
from umbra.config import load
from umbra.errors import UserError

PRETRAIN = {
    "learning_rate": "optim.encoder.lr", "lr": "optim.encoder.lr", "optim.lr": "optim.encoder.lr",
    "weight_decay": "optim.encoder.weight_decay", "batch_size": "batch.global", "batch-size": "batch.global",
    "model": "encoder.name", "backbone": "encoder.name", "dataset": "data.path", "data_dir": "data.path",
    "output": "run", "output_dir": "run", "max_steps": "steps", "num_epochs": "epochs", "epoch": "epochs",
}  # fmt: skip
SHARD = {
    "sample_rate": "rate", "fs": "rate", "Hz": "rate", "length": "seconds", "duration": "seconds",
    "num_workers": "workers", "input_dir": "input", "output_dir": "output", "out": "output", "format": "source.format",
    "units": "source.array.units", "lead": "leads", "sead": "seed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "key", "ours"),
    [(schema, *pair) for schema, pairs in ((PretrainConfig, PRETRAIN), (BuildConfig, SHARD)) for pair in pairs.items()],
)
def test_the_hint_is_the_key_that_is_meant(schema, key, ours):
    with pytest.raises(UserError, match=rf"unknown key '{key}'; did you mean '{ours}'\?$"):
        load(schema, None, [f"{key}=1"])


@pytest.mark.parametrize("key", ["device", "gpus", "num_gpus", "nodes"])
def test_devices_are_the_launchers(key):
    with pytest.raises(UserError, match=rf"unknown key '{key}'; devices and processes are the launcher's: deepspeed"):
        load(PretrainConfig, None, [f"{key}=cuda"])
