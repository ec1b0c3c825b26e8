"""Run directory -> encoder directory: `python -m trainer.export run=RUN_DIR [formats=[onnx,pt2]] [push=owner/name]`.

The encoder directory contains config.json, model.safetensors, golden.safetensors (an input and its features, to check
with), README.md (the model card) and, by `formats`, encoder.onnx and encoder.pt2 for other runtimes. It is written
under a temporary name and renamed, so that it is never incomplete; an older encoder at that path is replaced, a folder
with any other content is refused. The mean and variance of batch norm are re-estimated on unmasked training ECGs;
`data=DIR` gives the current path of their shards, `statistics=running` keeps the running statistics of training. `push`
sends the directory to the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import runtimes, threads
from trainer.config import DataConfig, PretrainConfig
from trainer.data.places import Place, any_remote, named
from trainer.data.shards import Shards
from trainer.data.sources import Sources, opened
from trainer.game.batchnorm import batch_norms, estimate
from trainer.observe.wandb_mirror import Mirror, WandbConfig
from trainer.run.checkpoint import WEIGHTS as CHECKPOINT_WEIGHTS
from trainer.run.checkpoint import committed, read_weights, saved_state
from trainer.run.record import RunRecord, read_record
from umbra import golden, publish
from umbra.card import CARD, model_card
from umbra.config import check_fields, command, load, setting
from umbra.directory import CONFIG, GOLDEN, HUB_ID, WEIGHTS, mismatch, read_config, save_weights
from umbra.encoders.config import EncoderConfig
from umbra.errors import UserError
from umbra.files import atomic_folder, claim_folder, write_text
from umbra.hub import initialise
from umbra.layers import TextOrTexts

FILES = {CONFIG, WEIGHTS, GOLDEN, CARD, *runtimes.FILES.values()}
STATISTICS = ("clean", "running")
MOST, PASS = 4096, 256  # ECGs for the batch-norm statistics: in all, per forward pass


@dataclass
class ExportConfig:
    """Which checkpoint of which run is exported, and where to."""

    run: str = ""
    """The run directory."""
    output: str = ""
    """The encoder directory (empty: RUN/encoder)."""
    step: str = "last"
    """The step of a committed checkpoint: a number, or `last`."""
    data: TextOrTexts = ""
    """The folder of the shards for the batch-norm statistics, or those of the sources of a mixture by name (empty: what
    the run was trained on)."""
    statistics: str = setting("clean", choices=STATISTICS)
    """Mean and variance of batch norm: `clean`, estimated on unmasked training ECGs, or `running`, the running
    statistics of training, which include masked ECGs and do not match clean ones."""
    push: str = ""
    """Send the encoder to this repository at the Hugging Face hub, `owner/name`, with the token of HF_TOKEN or of
    `hf auth login`."""
    private: bool = True
    """Whether a repository that `push` makes is private; one that exists stays as it is. Weights can carry traces of
    the ECGs they were trained on: make them public only where the terms of the data allow it."""
    results: list[str] = field(default_factory=list)
    """The `result.json` files of `python -m trainer.transfer` whose AUROC the model card gives."""
    license: str = ""
    """The licence of the weights on the model card, as the hub writes it, such as `cc-by-4.0` (empty: none)."""

    formats: list[str] = field(default_factory=list)
    """Files for other runtimes besides the weights: `onnx` (encoder.onnx, `pip install 'umbra[onnx]'`), `pt2`
    (encoder.pt2 of torch.export). Each takes any batch and any length, and is checked after writing."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not self.run:
            raise UserError("run is not set: python -m trainer.export run=RUN_DIR")
        check_fields(self)
        if self.push and not re.fullmatch(HUB_ID, self.push):
            raise UserError(f"push={self.push} is no repository at the hub: give push=owner/name")
        if self.license and not re.fullmatch(r"[\w.+-]+", self.license):
            raise UserError(
                f"license={self.license} is no licence as the hub writes them: cc-by-4.0, apache-2.0, other"
            )
        runtimes.check_formats(self.formats)


CONFIGS = {"": "trainer.export:ExportConfig"}


def main(argv: list[str]) -> None:
    config = load(ExportConfig, None, argv)
    config.check()
    threads.settle()
    place = Path(config.output) if config.output else None
    if config.push:
        publish.check(config.push)
    about = _card_of(config)
    output = export(Path(config.run), place, config.step, config.data, config.statistics, config.formats, about)
    print(f"encoder written to {output}")
    _mirror(Path(config.run), output)
    if config.push:
        name = publish.create(config.push, config.private, None)
        print(f"encoder sent to {publish.upload(output, name, None, allow_patterns=sorted(FILES))}")
    print(
        f"next: python -m trainer.transfer configs/transfer/rhythm.yaml encoder={quote(str(output))} "
        "data=DATA output=OUT"
    )


def _card_of(config: ExportConfig) -> dict[str, Any]:
    """The arguments of `model_card`. Warns of results that name another encoder than the one that is written."""
    output = Path(config.output or Path(config.run) / "encoder")
    card: dict[str, Any] = {"license": config.license.lower(), "repo": config.push, "evaluations": []}
    for name in config.results:
        from trainer.evaluate.evaluation import read_evaluation

        evaluation, encoder = read_evaluation(Path(name))
        card["evaluations"].append(evaluation)
        if Path(encoder).resolve() != output.resolve():
            print(f"warning: {name} is a result of encoder={encoder}, not of {output}: the card says it all the same")
    return card


def export(
    run: Path,
    output: Path | None = None,
    step: str = "last",
    data: Place = "",
    statistics: str = "clean",
    formats: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the encoder of a committed checkpoint of `run` to `output` (default `run/encoder`); returns the directory.

    `data`, `statistics`, `formats`: see `ExportConfig`; `card`: further arguments of `model_card`. Raises `UserError`
    if the run has no run.json, no committed checkpoint, or none of that step, if `output` contains anything but an
    older encoder, if batch norm needs ECGs that are missing, or if a file of `formats` differs from the encoder.
    """
    output = output or run / "encoder"
    record = read_record(run)
    _claim(output, run)
    number, checkpoint = _choose(run, step)
    config = _config(record, number, is_last=number == max(committed(run)))
    encoder = initialise(config)
    config = replace(config, dim=encoder.dim)
    weights = read_weights(checkpoint)
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    problem = mismatch(encoder.backbone.state_dict(), backbone)
    if problem:
        raise UserError(f"{checkpoint / CHECKPOINT_WEIGHTS} does not match the encoder in run.json: {problem}")
    encoder.backbone.load_state_dict(backbone)
    if not batch_norms(encoder) and (data or statistics != "clean"):
        raise UserError(f"{run} has no batch norm: leave out data= and statistics=, which only apply to batch norm")
    if batch_norms(encoder):
        origin = {"statistics": "running"}
        if statistics == "clean":
            origin = _set_statistics(encoder, *_training_shards(checkpoint, config, data))
        config = replace(config, training=config.training | {"batch_norm": origin})

    with atomic_folder(output) as temporary:
        save_weights(temporary / WEIGHTS, encoder.state_dict())
        save_weights(temporary / GOLDEN, golden.make(encoder))
        runtimes.write(encoder, temporary, formats)
        write_text(temporary / CARD, model_card(config, **(card or {})))
        write_text(temporary / CONFIG, config.to_json())
    return output


def _mirror(run: Path, encoder: Path) -> None:
    """Sends the encoder to the run's page at W&B if its config says `wandb.upload_encoder`."""
    path = run / "config.yaml"
    try:
        wandb = load(PretrainConfig, path).wandb if path.is_file() else WandbConfig()
    except UserError as error:
        return print(f"warning: nothing is sent to W&B: {error}")
    if wandb.upload_encoder:
        about, record = read_config(encoder), read_record(run)
        mirror = Mirror(run, wandb, {"wandb_id": record.wandb_id})
        mirror.encoder(encoder, f"encoder-{record.wandb_id}", f"step-{about.training['step']}", asdict(about))
        mirror.close({})


def _claim(output: Path, run: Path) -> None:
    """Raises `UserError` unless `output` is missing, empty, or an encoder directory with no other file in it."""
    claim_folder(output, "output")
    where = output.resolve()
    if where in (run.resolve(), *run.resolve().parents):
        raise UserError(f"output={output} contains the run itself: choose another folder")
    if not where.exists():
        return
    others = sorted(p.name for p in where.iterdir() if p.name not in FILES or p.is_dir())
    if others:
        raise UserError(
            f"output={output} contains other files ({others[0]}): choose another folder, or empty it yourself"
        )
    if any(where.iterdir()):
        try:
            read_config(where)
        except UserError as error:
            raise UserError(
                f"output={output} is not an encoder directory: choose another folder, or empty it"
            ) from error


def _choose(run: Path, step: str) -> tuple[int, Path]:
    checkpoints = committed(run)
    if not checkpoints:
        raise UserError(f"{run / 'checkpoints'} has no committed checkpoint: let the run reach its first one")
    if step == "last":
        return max(checkpoints), checkpoints[max(checkpoints)]
    if not step.isdecimal() or int(step) not in checkpoints:
        raise UserError(
            f"step={step}: {run} has no such committed checkpoint; it has {', '.join(map(str, checkpoints))}"
        )
    return int(step), checkpoints[int(step)]


def _config(record: RunRecord, step: int, is_last: bool) -> EncoderConfig:
    """The `config.json` of a run's encoder; `dim` is set once the encoder is built."""
    encoder = record.encoder
    training: dict[str, Any] = {key: getattr(record, key) for key in ("method", "steps", "status", "commit")}
    if init := record.init:
        training["init"] = {key: init[key] for key in ("sha256", "training", "data")}
    if record.pair:
        training["pair"] = dict(record.pair)
    return EncoderConfig(
        architecture={"name": encoder["name"], "args": encoder["args"]},
        dim=0,
        rate=encoder["rate"],
        leads=encoder["leads"],
        samples=encoder["samples"],
        scaling=record.scaling,
        training=training | {"step": step, "is_last": is_last},
        data={"fingerprint": record.fingerprint, "key_id": record.key_id, **record.data, **_sources(record)},
        versions=record.versions,
    )


def _sources(record: RunRecord) -> dict[str, Any]:
    """What `config.json` says of each source of a mixture that the run was ever trained on."""
    keys = ("fingerprint", "key_id", "samples", "patients", "share")
    sources = {name: {key: source[key] for key in keys} for name, source in record.sources.items()}  # type: ignore[literal-required]
    return {"sources": sources} if sources else {}


def _set_statistics(encoder: torch.nn.Module, shards: Shards, excluded: Collection[str]) -> dict[str, Any]:
    """Sets the batch-norm statistics to those of unmasked training ECGs; returns the entry for config.json."""
    rows = drawn(shards, excluded, MOST)
    parts = np.array_split(rows, -(-len(rows) // PASS))
    estimate(encoder, (torch.from_numpy(shards.read_mv(part)) for part in parts))
    return {"statistics": "clean", "ecgs": len(rows), "fingerprint": shards.manifest.fingerprint}


def drawn(shards: Shards, excluded: Collection[str], most: int) -> NDArray[np.int64]:
    """At most `most` samples of a split, evenly spaced over its shards except the `excluded` ones; of a mixture, of
    each source by its weight."""
    ends = np.cumsum(shards.counts)
    used = [(s.name, np.arange(e - s.samples, e)) for s, e in zip(shards.shards, ends) if s.name not in excluded]
    if not isinstance(shards, Sources):
        return _evenly(np.concatenate([samples for _, samples in used]), most)
    parts = [(w, [x for n, x in used if n.startswith(f"{name}/")]) for name, w in shards.weights.items()]
    total = sum(shards.weights.values())
    return np.concatenate([_evenly(np.concatenate(some), max(1, int(most * w / total))) for w, some in parts if some])


def _evenly(usable: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    n = min(most, len(usable))
    return usable[np.arange(n) * len(usable) // n]


def _training_shards(checkpoint: Path, config: EncoderConfig, data: Place) -> tuple[Shards, list[str]]:
    """The shards that a run was trained on, or those in `data`, and the names of the excluded ones.

    Raises `UserError` if they are missing, have another rate, leads or length or, without `data`, another fingerprint.
    """
    saved = saved_state(checkpoint)["config"]["data"]
    path, excluded = data or saved["path"], saved.get("exclude", [])
    weights = {name: w for name, w in saved.get("weights", {}).items() if name in named(path)}
    wanted_data = DataConfig(path=path, weights=weights, exclude=excluded)
    what = "batch norm needs training ECGs for its statistics"
    fix = "give data=FOLDER with the run's shards, or statistics=running to keep those of training"
    if any_remote(wanted_data.place):
        raise UserError(f"{what}, and {path} is not on this machine: {fix}")
    try:
        shards = opened(wanted_data, "train")
    except UserError as error:
        raise UserError(f"{what}: {error}; or {fix}") from error
    for name in ("rate", "leads", "samples"):
        wanted, given = getattr(config, name), getattr(shards.manifest, name)
        if wanted != given:
            raise UserError(f"{what}: the encoder needs {name} {wanted}, {path} has {given}; {fix}")
    if not data and not _same_data(shards, config):
        raise UserError(f"{what}: {path} now contains another data set; {fix}")
    return shards, excluded


def _same_data(shards: Shards, config: EncoderConfig) -> bool:
    """Whether the shards are those that an encoder names."""
    if isinstance(shards, Sources):
        known = {name: source["fingerprint"] for name, source in config.data.get("sources", {}).items()}
        return all(known.get(name) == manifest.fingerprint for name, manifest in shards.manifests.items())
    return bool(shards.manifest.fingerprint == config.data["fingerprint"])


if __name__ == "__main__":
    command(main)
