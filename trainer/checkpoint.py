"""Checkpoints: both engines, the position, the plain weights; committed or not there.

`checkpoints/step-N/` holds DeepSpeed's `encoder/` and `masker/`, `state.json`, `weights.safetensors` (fp32, whole) and,
written last by rank 0 once every rank is done, the marker `COMMITTED`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from sharding.config import UserError

MARKER = "COMMITTED"
FIXED = ("batch.global", "batch.contrast", "data.lanes", "data.block_shards", "seed", "fingerprint", "zero", "players")


def newest(run: str | Path) -> Path | None:
    """The newest committed checkpoint of a run directory."""
    folder = Path(run) / "checkpoints"
    found = {step: path for path in folder.glob("step-*") if (step := _step_of(path)) is not None}
    return found[max(found)] if found else None


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match[1]) if match and (path / MARKER).is_file() else None


def save(run: Path, step: int, engines: Mapping[str, Any], state: Mapping[str, Any], keep: int) -> Path:
    """Writes the checkpoint of `step`; called by every rank. Keeps the newest `keep` committed ones."""
    path = run / "checkpoints" / f"step-{step}"
    main = dist.get_rank() == 0
    if main:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    weights: dict[str, Tensor] = {}
    for name, engine in engines.items():
        engine.save_checkpoint(str(path / name), tag="state", save_latest=False)
        prefix = "masker." if name == "masker" else ""
        weights |= {prefix + key: value for key, value in whole_weights(engine).items()}
    dist.barrier()
    if main:
        save_file(weights, path / "weights.safetensors")
        write_text(path / "state.json", json.dumps({"step": step, **state}, indent=1))
        _flush_tree(path)
        write_text(path / MARKER, "")
        _remove_old(run, keep)
    dist.barrier()
    return path


def load(path: Path, engines: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """Restores both engines and returns the step. Raises `UserError`, naming what changed, if the run is another."""
    saved = json.loads((path / "state.json").read_text())
    for key in FIXED:
        if saved[key] != state[key]:
            raise UserError(
                f"{path} was made with {key}={saved[key]}, this run has {state[key]}: go on with the old value, "
                "or start another run directory (run=...)"
            )
    if saved["zero"] > 0 and saved["world"] != state["world"]:
        raise UserError(
            f"{path} was made by {saved['world']} processes, this run has {state['world']}: with zero={saved['zero']} "
            "the optimiser's parts belong to a world size; use the same number of processes (zero=0 can change it)"
        )
    for name, engine in engines.items():
        loaded, _ = engine.load_checkpoint(str(path / name), tag="state")
        if loaded is None:
            raise UserError(f"{path / name} is damaged: delete {path} and resume from the checkpoint before it")
    return int(saved["step"])


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The fp32 weights of an engine's module by name, whole at any ZeRO stage; called by every rank."""
    if engine.zero_optimization_stage() < 3:
        return {k: v.detach().float().cpu().contiguous() for k, v in engine.module.state_dict().items()}
    import deepspeed

    module: nn.Module = engine.module
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return {k: v.detach().float().cpu().clone().contiguous() for k, v in module.state_dict().items()}


def _remove_old(run: Path, keep: int) -> None:
    steps = sorted(s for p in (run / "checkpoints").glob("step-*") if (s := _step_of(p)) is not None)
    for step in steps[:-keep]:
        old = run / "checkpoints" / f"step-{step}"
        (old / MARKER).unlink()
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _flush(path.parent)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
