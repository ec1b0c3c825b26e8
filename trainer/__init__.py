"""Shards -> encoders, and what they are worth."""

from umbra.errors import require_extra

require_extra(
    "train", "omegaconf", "yaml", "pyarrow", "scipy", "sklearn", "deepspeed", "webdataset", "wandb", "matplotlib"
)
