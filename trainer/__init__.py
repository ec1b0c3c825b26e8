"""Pre-trains encoders on sharded ECGs, and evaluates them."""

from trainer.threads import sleep_while_waiting
from umbra.drawing import without_missing_backend
from umbra.errors import require_extra

require_extra(
    "train", "omegaconf", "yaml", "pyarrow", "scipy", "sklearn", "deepspeed", "webdataset", "wandb", "matplotlib"
)
sleep_while_waiting()
without_missing_backend()
