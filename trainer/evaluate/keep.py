"""Keeps a fitted model: an encoder directory with the head beside it, for `umbra.load_predictor`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from trainer.evaluate.config import TransferConfig
from trainer.evaluate.finetune import Tuned
from trainer.evaluate.kinds import Numbers
from trainer.evaluate.task import Task
from umbra import golden
from umbra.directory import CONFIG, GOLDEN, WEIGHTS, save_weights
from umbra.files import atomic_folder, write_text
from umbra.predictor import HeadConfig, save_head

MODEL = "model"


def keep(folder: Path, task: Task, fit: Tuned, config: TransferConfig, older: Path) -> None:
    """Writes the model to `folder`, whole or not at all, in place of an older one.

    `older`: the result of that one, which is removed at that moment.
    """
    encoder, kind = fit.model.encoder, fit.kind
    manifest = task.train.shards.manifest
    origin: dict[str, Any] = {"task": task.name, "mode": config.mode, "encoder": config.encoder}
    origin |= {"fraction": config.fraction, "seed": fit.seed, **fit.chosen, "data": manifest.fingerprint}
    origin |= {"draw": config.draw} if config.draw else {}
    trained_on = {"fingerprint": manifest.fingerprint, "key_id": manifest.key_id}
    before, data = (encoder.config.training, encoder.config.data) if config.pretrained else ({}, trained_on)
    if "labels" in before:  # fine-tuned before
        origin["before"] = before["labels"]
    about = dataclasses.replace(encoder.config, dim=encoder.dim, data=data, training=before | {"labels": origin})
    mean, std = (kind.mean.tolist(), kind.std.tolist()) if isinstance(kind, Numbers) else ([], [])
    with atomic_folder(folder) as place:
        save_weights(place / WEIGHTS, encoder.state_dict())
        save_weights(place / GOLDEN, golden.make(encoder))
        save_head(place, fit.model.head, HeadConfig(task.kind, task.names, task.name, mean, std))
        write_text(place / "README.md", card(task, origin))
        write_text(place / CONFIG, about.to_json())
        older.unlink(missing_ok=True)


def card(task: Task, origin: dict[str, Any]) -> str:
    """The README.md of a kept model."""
    return f"""# {task.name}: a fitted model

An encoder and a linear head, trained together on labelled ECGs: `{json.dumps(origin)}`.
`result.json` in the folder above says how good it is on records that it has not seen.

```python
from umbra import load_predictor

model = load_predictor("path/to/this/directory")
prediction = model(ecg_in_mv)  # columns: model.names
```

Not a medical device.
"""
