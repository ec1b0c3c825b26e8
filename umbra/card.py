"""The model card of an encoder directory: its README.md, with the metadata that the hub reads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from umbra.encoders.config import EncoderConfig

CARD = "README.md"
METRICS = {"AUROC": "roc_auc", "R2": "r_squared"}  # as the hub names them
TAGS = ("ecg", "electrocardiogram", "self-supervised")


@dataclass(frozen=True)
class Evaluation:
    """What the card says of a `result.json`: the `value` of a `metric` (`AUROC` or `R2`) on the test patients.

    `mode`: `probe` or `finetune`; `fraction` of the labels, and in words the `choice` of these; `fingerprint` of the
    data; `low`, `high`: the 95 % interval (None: not known); `per_class`: the metric of each class.
    """

    task: str
    mode: str
    fraction: float
    choice: str
    fingerprint: str
    metric: str
    value: float
    low: float | None
    high: float | None
    per_class: dict[str, float]


def model_card(config: EncoderConfig, evaluations: Sequence[Evaluation] = (), license: str = "", repo: str = "") -> str:
    """The README.md of an encoder directory; `license` as the hub calls it, `repo`: its id there, if it has one."""
    training, data = config.training, config.data
    more = _norm_row(training["batch_norm"]) if "batch_norm" in training else ""
    more += _init_row(training["init"]) if "init" in training else ""
    more += _pair_row(training["pair"]) if "pair" in training else ""
    step, steps = training.get("step"), training.get("steps")
    last = "the last committed step" if training.get("is_last") else "chosen by its number"
    return f"""{_metadata(config, evaluations, license, repo)}
# A 12-lead ECG encoder

The encoder of step {step}, {last} (of {steps} planned; the run's status at export: {training.get("status")}).
It is the state at that step; no score was used to choose it.

| | |
|---|---|
| method | `{training.get("method")}`: self-supervised pre-training, no labels were used |
| architecture | `{config.architecture["name"]}` {json.dumps(config.architecture["args"])} |
| input | {config.units}, `[batch, {len(config.leads)}, {config.samples}]` at {config.rate:g} Hz |
| leads, in order | {", ".join(config.leads)} |
| output | features `[batch, {config.dim}]` |
| scaling | part of the model, `{config.scaling["mode"]}` |
{more}| pre-training data | {data.get("samples", "?")} windows of {data.get("patients", "?")} patients (train split) |
{_source_rows(data)}| data fingerprint, key id | `{data.get("fingerprint")}`, `{data.get("key_id")}` |
| code | commit `{training.get("commit")}`; {", ".join(f"{k} {v}" for k, v in config.versions.items())} |

## Use

```python
from umbra import load_encoder

encoder = load_encoder("{repo or "path/to/this/directory"}")
features = encoder(ecg_in_mv)  # float32 [batch, {len(config.leads)}, {config.samples}] -> [batch, {config.dim}]
```

Intended for research: features for a linear probe, or the start of fine-tuning where labels are scarce.
`python -m trainer.transfer` does both.
{_table(evaluations)}
## Limits

- What pre-training methods are worth was compared on 1,987 records of PTB-XL only (ResNet18 of width 32, two or three
  seeds; study.md and same-window.md in docs/results of the code): with the default views learned masks were ahead of
  3KG on sex and on diagnostic superclasses and behind it on rhythm with all labels, and in no comparison that was named
  beforehand told from random masks. On pairs of one window they were ahead of random blocks on sex with a tenth of the
  labels, and not told from them on rhythm.
- Not a medical device. Nothing here was tested for diagnosis, and the features carry no calibrated probability.
- It was trained only on the leads, rate, window length and population above; test it on your own patients first.
- Features can carry a patient's age, sex and identity. Protect them like the ECGs.
- Do not test it on patients that it was pre-trained on. Patients can only be matched across data sets with the same
  key id.
"""


def _pair_row(pair: dict[str, Any]) -> str:
    return f"| trained on | views of {pair['seconds']:g} s (`pair={pair['kind']}`); whole windows are taken as well |\n"


def _metadata(config: EncoderConfig, evaluations: Sequence[Evaluation], license: str, repo: str) -> str:
    """The block of YAML at the top of the card. JSON is YAML, so that no other package is needed."""
    name = config.architecture["name"]
    values: dict[str, Any] = {"library_name": "umbra", "pipeline_tag": "feature-extraction"}
    values |= {"license": license} if license else {}
    values |= {"tags": [*TAGS, name]}
    if evaluations:
        results = [_model_index(evaluation) for evaluation in evaluations]
        values["model-index"] = [{"name": repo.rpartition("/")[2] or f"umbra-{name}", "results": results}]
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()) + "---\n"


def _model_index(e: Evaluation) -> dict[str, Any]:
    """One result in the form of the hub's `model-index`."""
    interval = "" if e.low is None or e.high is None else f" (95 % by patients: {e.low:.3f} to {e.high:.3f})"
    kind = METRICS[e.metric]
    metrics: list[dict[str, Any]] = [{"type": kind, "value": e.value, "name": f"macro {e.metric}{interval}"}]
    metrics += [{"type": kind, "value": v, "name": f"{e.metric} of {name}"} for name, v in e.per_class.items()]
    dataset = {
        "name": f"shards {e.fingerprint}",
        "type": "umbra-shards",
        "config": f"{e.task}, {_how(e)}, {e.choice}",
        "split": "test",
        "revision": e.fingerprint,
    }
    task = {"type": "other", "name": f"{e.task}, {_how(e)}"}
    return {"task": task, "dataset": dataset, "metrics": [m for m in metrics if math.isfinite(m["value"])]}


def _how(e: Evaluation) -> str:
    return f"{e.mode} with {e.fraction:.4g} of the labels"


def _table(evaluations: Sequence[Evaluation]) -> str:
    """The results as a section of the card."""
    if not evaluations:
        return ""
    rows = []
    for e in evaluations:
        interval = "" if e.low is None or e.high is None else f" ({e.low:.3f} to {e.high:.3f})"
        rows.append(f"| {e.task} | {_how(e)}, {e.choice} | `{e.fingerprint}` | {e.metric} {e.value:.3f}{interval} |\n")
    head = "| task | how | test patients of data | macro metric (95 % by patients) |\n|---|---|---|---|\n"
    return f"\n## Results\n\n{head}{''.join(rows)}"


def _init_row(init: dict[str, Any]) -> str:
    """The row of the model card's table for a run that went on from another encoder."""
    before, data = init["training"], init["data"]
    return (
        f"| went on from | step {before.get('step')} of `{before.get('method')}` (weights `{init['sha256'][:12]}`), "
        f"pre-trained on {data.get('samples', '?')} windows of data `{data.get('fingerprint')}` |\n"
    )


def _source_rows(data: dict[str, Any]) -> str:
    """A row of the model card's table for each source of a mixture that the encoder was ever trained on."""
    return "".join(
        f"| of source `{name}` | {one['samples']} windows of {one['patients']} patients, weight {one['share']} "
        f"(data `{one['fingerprint']}`, key `{one['key_id']}`) |\n"
        for name, one in data.get("sources", {}).items()
    )


def _norm_row(batch_norm: dict[str, Any]) -> str:
    """The batch-norm row of the model card's table."""
    if batch_norm["statistics"] == "running":
        return "| batch norm | the running mean and variance of training, over clean and masked ECGs |\n"
    return (
        f"| batch norm | mean and variance of {batch_norm['ecgs']} training ECGs, none masked, "
        f"of data `{batch_norm['fingerprint']}` |\n"
    )
