"""Run directory -> encoder directory: `python -m trainer.export run=RUN_DIR [output=DIR] [step=last]`.

The encoder directory holds config.json, model.safetensors and README.md (the model card). It is written under a
temporary name and renamed, so that it is there whole or not at all; an older encoder at that place is replaced, a
folder that holds anything else is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sharding.config import UserError, command, load
from sharding.files import claim_folder, flush, write_text
from trainer.checkpoint import committed
from trainer.hub import CONFIG, WEIGHTS, EncoderConfig, initialise, mismatch, read_config, save_weights

CARD = "README.md"
FILES = {CONFIG, WEIGHTS, CARD}


@dataclass
class ExportConfig:
    """`run`: run directory; `output`: encoder directory (default RUN/encoder); `step`: a number or `last`."""

    run: str = ""
    output: str = ""
    step: str = "last"


def main(argv: list[str]) -> None:
    config = load(ExportConfig, None, argv)
    if not config.run:
        raise UserError("say which run to export: python -m trainer.export run=RUN_DIR")
    output = export(Path(config.run), Path(config.output) if config.output else None, config.step)
    print(f"encoder written to {output}")
    print(f"next: python -m trainer.transfer configs/transfer/rhythm.yaml encoder={output} data=DATA output=OUT")


def export(run: Path, output: Path | None = None, step: str = "last") -> Path:
    """Writes the encoder of a committed checkpoint of `run` to `output` (default `run/encoder`); returns the directory.

    Raises `UserError` if the run has no run.json, no committed checkpoint, or none of that step, and if `output` holds
    anything but an older encoder.
    """
    output = output or run / "encoder"
    record = read_run(run)
    _claim(output, run)
    number, checkpoint = _choose(run, step)
    config = _config(record, number, is_last=number == max(committed(run)))
    encoder = initialise(config)
    config = replace(config, dim=int(encoder.backbone.dim))
    weights = load_file(checkpoint / "weights.safetensors")
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    problem = mismatch(encoder.backbone.state_dict(), backbone)
    if problem:
        raise UserError(f"{checkpoint / 'weights.safetensors'} does not fit the encoder that run.json names: {problem}")
    encoder.backbone.load_state_dict(backbone)

    place = output.resolve()
    temporary = place.with_name(f".{place.name}.partial-{os.getpid()}")
    try:
        save_weights(temporary / WEIGHTS, encoder.state_dict())
        write_text(temporary / CARD, model_card(config))
        write_text(temporary / CONFIG, config.to_json())
        _replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _claim(output: Path, run: Path) -> None:
    """Raises `UserError` unless `output` is not there, empty, or an encoder directory with no other file in it."""
    claim_folder(output, "output")
    where = output.resolve()
    if where in (run.resolve(), *run.resolve().parents):
        raise UserError(f"output={output} holds the run itself: choose another folder")
    if not where.exists():
        return
    others = sorted(p.name for p in where.iterdir() if p.name not in FILES or p.is_dir())
    if others:
        raise UserError(f"output={output} holds other files ({others[0]}): choose another folder, or empty it yourself")
    if any(where.iterdir()):
        try:
            read_config(where)
        except UserError as error:
            raise UserError(f"output={output} holds files of no encoder: choose another folder, or empty it") from error


def read_run(run: Path) -> dict[str, Any]:
    """Reads `run/run.json`. Raises `UserError` if it is missing or damaged."""
    path = run / "run.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: {run} is not a run directory of trainer/pretrain.py")
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    missing = [key for key in ("encoder", "scaling", "fingerprint", "key_id") if key not in record]
    if missing:
        raise UserError(f"{path} lacks '{missing[0]}': was the run stopped before its first step?")
    return record


def _choose(run: Path, step: str) -> tuple[int, Path]:
    checkpoints = committed(run)
    if not checkpoints:
        raise UserError(f"{run / 'checkpoints'} holds no committed checkpoint: let the run reach its first save")
    if step == "last":
        return max(checkpoints), checkpoints[max(checkpoints)]
    if not step.isdecimal() or int(step) not in checkpoints:
        raise UserError(
            f"step={step}: {run} has no such committed checkpoint; it has {', '.join(map(str, checkpoints))}"
        )
    return int(step), checkpoints[int(step)]


def _config(record: dict[str, Any], step: int, is_last: bool) -> EncoderConfig:
    """The `config.json` of a run's encoder, but for `dim`, which the built encoder knows."""
    encoder = record["encoder"]
    training = {key: record.get(key) for key in ("method", "steps", "status", "commit")}
    return EncoderConfig(
        architecture={"name": encoder["name"], "args": encoder["args"]},
        dim=0,
        rate=encoder["rate"],
        leads=encoder["leads"],
        samples=encoder["samples"],
        scaling=record["scaling"],
        training=training | {"step": step, "is_last": is_last},
        data={key: record[key] for key in ("fingerprint", "key_id")} | record.get("data", {}),
        versions=record.get("versions", {}),
    )


def _replace(temporary: Path, output: Path) -> None:
    """Puts the finished directory in place of an older one; the older one is removed last."""
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    flush(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def model_card(config: EncoderConfig) -> str:
    """The README.md of an encoder directory."""
    training, data = config.training, config.data
    step, steps = training["step"], training.get("steps")
    last = "the last committed step" if training["is_last"] else "chosen by its number"
    return f"""---
library_name: umbra
tags: [ecg, self-supervised]
---

# A 12-lead ECG encoder

The encoder of step {step}, {last} (of {steps} planned; the run's status at export: {training.get("status")}).
It is the state at that step, not one chosen by a score.

| | |
|---|---|
| method | `{training.get("method")}`: self-supervised pre-training, no labels were used |
| architecture | `{config.architecture["name"]}` {json.dumps(config.architecture["args"])} |
| input | {config.units}, `[batch, {len(config.leads)}, {config.samples}]` at {config.rate:g} Hz |
| leads, in order | {", ".join(config.leads)} |
| output | features `[batch, {config.dim}]` |
| scaling | part of the model, `{config.scaling["mode"]}` |
| pre-training data | {data.get("samples", "?")} windows of {data.get("patients", "?")} patients (train split) |
| data fingerprint, key id | `{data.get("fingerprint")}`, `{data.get("key_id")}` |
| code | commit `{training.get("commit")}`; {", ".join(f"{k} {v}" for k, v in config.versions.items())} |

## Use

```python
from umbra import load_encoder

encoder = load_encoder("path/to/this/directory")
features = encoder(ecg_in_mv)  # float32 [batch, {len(config.leads)}, {config.samples}] -> [batch, {config.dim}]
```

Intended for research: features for a linear probe, or the start of fine-tuning where labels are scarce.
`python -m trainer.transfer` does both.

## Limits

- Not a medical device. Nothing here was tested for diagnosis, and the features carry no calibrated probability.
- It saw only the leads, rate, window length and population above; test it on your own patients before you rely on it.
- Features can carry a patient's age, sex and identity. Handle them as you handle the ECGs.
- Do not test it on patients that it was pre-trained on. Two data sets can be compared by patient only under one key id.
"""


if __name__ == "__main__":
    command(main)
