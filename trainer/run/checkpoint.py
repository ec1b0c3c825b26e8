"""Checkpoints: both engines, the step, and the plain weights; incomplete ones are ignored.

`checkpoints/step-N/` holds DeepSpeed's `encoder/` and `masker/`, `state.json` (the step, the run's whole config, the
data's fingerprint), `weights.safetensors` (fp32, unpartitioned) and, written last by rank 0 once every rank is done,
the marker `COMMITTED`. `trainer.run.saving` writes them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from trainer.config import PretrainConfig
from trainer.data.mixtures import Taken
from trainer.run import reshape
from trainer.run.init import Origin
from umbra import directory, resume
from umbra.config import as_dict
from umbra.errors import UserError
from umbra.files import damaged, read_json
from umbra.typed import typed

MARKER, STATE, WEIGHTS = "COMMITTED", "state.json", "weights.safetensors"
DEFAULTS = as_dict(PretrainConfig())  # of keys that a checkpoint of an earlier version does not have


def folder_of(run: str | Path, step: int) -> Path:
    return Path(run) / "checkpoints" / f"step-{step}"


def begun(run: str | Path) -> dict[int, Path]:
    """All checkpoints of a run directory, also those that were not written to their end: step -> folder, ascending."""
    names = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in Path(run).glob("checkpoints/step-*"))
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def committed(run: str | Path) -> dict[int, Path]:
    """The committed checkpoints of a run directory: step -> folder, ascending."""
    return {step: path for step, path in begun(run).items() if (path / MARKER).is_file()}


def newest(run: str | Path) -> Path | None:
    """The newest committed checkpoint of a run directory."""
    return next(reversed(committed(run).values()), None)


class _Data(TypedDict):
    path: str | dict[str, str]


class _Config(TypedDict):
    data: _Data


class _State(TypedDict):
    """What is needed of a state: all else may be missing in one of an earlier version."""

    step: int
    config: _Config
    fingerprint: str
    world: int


class _Excluding(_State, total=False):
    excluded: list[tuple[int, list[str]]]
    mixtures: list[tuple[int, dict[str, Taken]]]
    lead_stats: list[list[float]]
    init: Origin | None


def saved_state(path: Path | None) -> dict[str, Any]:
    """The `state` that was passed to `save`, with the `step`; empty without a checkpoint.

    Raises `UserError` if it is damaged or of an earlier version.
    """
    if path is None:
        return {}
    content = read_json(path / STATE, _fix(path))
    if "step" in content and "config" not in content:
        raise UserError(f"{path} was made by an earlier version, without its config: choose another run directory")
    try:
        return dict(typed(_Excluding, content))
    except ValueError as error:
        raise damaged(path / STATE, error, _fix(path)) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The plain weights of a checkpoint by name. Raises `UserError` if they are missing or damaged."""
    return directory.read_weights(path / WEIGHTS, _fix(path))


def _fix(path: Path) -> str:
    return f"delete {path} to go on from the checkpoint before it"


def prepare(path: Path, players: Mapping[str, nn.Module], state: Mapping[str, Any]) -> bool:
    """Whether the state of `path` must be cut anew for another number of processes; gives the players its weights then.

    To be called before the engines are made, which partition the weights. Raises `UserError` as `load` does.
    """
    saved = saved_state(path)
    refuse_changes(path, saved, state)
    if not _cut_anew(saved, state):
        return False
    give_weights(players, path / WEIGHTS, _fix(path))
    return True


def give_weights(players: Mapping[str, nn.Module], path: Path, fix: str) -> None:
    """Loads the plain weights in a file into the players. Raises `UserError`, ending in `fix`, if it is damaged."""
    weights = directory.read_weights(path, fix)
    for name, module in players.items():
        own = {key.removeprefix("masker."): value for key, value in weights.items() if _player(key) == name}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise damaged(path, error, fix) from error


def _player(key: str) -> str:
    return "masker" if key.startswith("masker.") else "encoder"


def _cut_anew(saved: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether ZeRO's partitions are those of another number of processes."""
    return state["config"]["zero"] > 0 and saved["world"] != state["world"]


def load(path: Path, engines: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """Restores both engines, of players that `prepare` has seen, and returns the step. Raises `UserError`, naming what
    changed, if it is not the same run.

    `state` is what was passed to `save`: `config` (nested), `fingerprint` of the data, `world` (number of processes);
    the last, and `excluded` (the shards excluded, from which step on) or `mixtures`, may differ.
    """
    saved = saved_state(path)
    refuse_changes(path, saved, state)
    for name, engine in engines.items():
        with _damage_named(path, name):
            if _cut_anew(saved, state):
                reshape.give(engine, reshape.read(path / name / "state", saved["world"]))
                engine.global_steps = int(saved["step"])
            elif engine.load_checkpoint(str(path / name), tag="state")[0] is None:
                raise ValueError("DeepSpeed found no state")
    return int(saved["step"])


@contextlib.contextmanager
def _damage_named(path: Path, name: str) -> Iterator[None]:
    """DeepSpeed has no error of its own for a damaged file: anything may be raised."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = damaged(path / name, error, _fix(path))
        said.alone = True  # each process reads files of its own
        raise said from error


def refuse_changes(path: Path, saved: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises `UserError`, naming what changed, if a run with `state` cannot resume the checkpoint `path`."""
    if changed := changes(saved, state):
        raise UserError(
            f"{path} was made with another {'; '.join(changed)}: resume with the old values, or choose another run "
            "directory (run=DIR)"
        )


def changes(saved: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """What prevents a run with `state` from resuming a `saved` one: `key: old value, now new value`."""
    old, new = ({**s["config"], "fingerprint": s["fingerprint"]} for s in (saved, state))
    if old.get("precision") == "auto":  # an earlier version did not keep what it stood for
        old["precision"] = new["precision"]
    return [f"{c.key}: {_shown(c.old)}, now {_shown(c.new)}" for c in resume.changes("run", old, new, DEFAULTS)]


def _shown(value: Any) -> str:
    return "not set" if value is resume.UNSET else json.dumps(value, sort_keys=True)


def whole_weights(
    engine: Any, copied: Callable[[Tensor], Tensor] | None = None, wanted: bool = True
) -> dict[str, Tensor]:
    """The weights of an engine's module by name, unpartitioned at any ZeRO stage; called by every rank.

    They are on the CPU in fp32 (at stages 0 to 2 the engine's own memory, if it has them so), or what `copied` makes of
    them. None where they are not `wanted`.
    """
    if engine.zero_optimization_stage() < 3:
        return _named(engine.module, copied or to_fp32) if wanted else {}
    import deepspeed

    module: nn.Module = engine.module
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return _named(module, copied or (lambda v: to_fp32(v).clone())) if wanted else {}


def _named(module: nn.Module, copied: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: copied(value.detach()) for name, value in module.state_dict().items()}


def to_fp32(value: Tensor) -> Tensor:
    """On the CPU, in fp32, contiguous; integers as they are."""
    return (value.float() if value.is_floating_point() else value).cpu().contiguous()
