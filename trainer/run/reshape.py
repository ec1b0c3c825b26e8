"""The optimiser state that another number of processes saved: ZeRO's partitions are joined, and cut anew.

DeepSpeed's own way, the universal checkpoint, is a second command, which at stage 3 silently gives the parameters
without weight decay the settings of the others (DeepSpeed 0.19.8). Here the settings are always those of the config.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """The elements of one parameter in a process's flat tensor `group`: `numel` of them from `start`."""

    name: str
    group: int
    start: int
    numel: int


@dataclass(frozen=True)
class OptimiserState:
    """AdamW's `step`, and by moment and name of a parameter all of its elements, flat."""

    step: Tensor
    moments: Mapping[str, Mapping[str, Tensor]]


def read(folder: Path, world: int) -> OptimiserState:
    """The whole state that `world` processes saved in the folder of an engine at ZeRO stage 1, 2 or 3.

    Anything may be raised for damaged files.
    """
    parts: dict[str, dict[str, list[Tensor]]] = {moment: defaultdict(list) for moment in MOMENTS}
    step = torch.zeros(())
    for rank in range(world):
        saved = _load(folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        if "param_slice_mappings" in saved:
            states, pieces = saved["base_optimizer_state"]["state"], _pieces_of_groups(saved["param_slice_mappings"])
        else:
            shapes = _load(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")["param_shapes"]
            states, pieces = saved["optimizer_state_dict"]["state"], _pieces_of_each(shapes, rank, world)
        step = states[0]["step"]
        for piece in pieces:
            for moment in MOMENTS:
                part = states[piece.group][moment][piece.start : piece.start + piece.numel]
                parts[moment][piece.name].append(part)
    return OptimiserState(step, {m: {name: torch.cat(all_) for name, all_ in parts[m].items()} for m in MOMENTS})


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def _pieces_of_groups(mappings: Any) -> Iterator[Piece]:
    """Stages 1 and 2 cut a whole group into equal partitions; each file says what it has."""
    for group, mapping in enumerate(mappings):
        for name, at in mapping.items():
            yield Piece(name, group, at.start, at.numel)


def _pieces_of_each(shapes: Any, rank: int, world: int) -> Iterator[Piece]:
    """Stage 3 cuts each parameter into equal partitions, the last ones padded."""
    for group, named in enumerate(shapes):
        start = 0
        for name, shape in named.items():
            size, share = math.prod(shape), math.ceil(math.prod(shape) / world)
            yield Piece(name, group, start, max(0, min(share, size - rank * share)))
            start += share


def give(engine: Any, state: OptimiserState) -> None:
    """Sets this process's partitions of the state in a new engine of ZeRO stage 1, 2 or 3.

    Raises `ValueError` if the state is not that of the engine's parameters.
    """
    zero, adamw = engine.optimizer, engine.optimizer.optimizer
    whole_group = engine.zero_optimization_stage() < 3
    flats = zero.single_partition_of_fp32_groups if whole_group else zero.fp32_partitioned_groups_flat
    for flat in flats:
        adamw.state[flat] = {"step": state.step.clone().to(flat.device)}
        adamw.state[flat] |= {moment: torch.zeros_like(flat) for moment in MOMENTS}
    for name, parameter in engine.module.named_parameters():
        piece, begin = _place(zero, name, parameter, whole_group)
        size = parameter.numel() if whole_group else parameter.ds_numel
        for moment in MOMENTS:
            whole = state.moments[moment].get(name)
            if whole is None or whole.numel() != size:
                raise ValueError(f"the optimiser state has no {moment} of {name}, or one of another size")
            mine = whole[begin : begin + piece.numel]
            target = adamw.state[flats[piece.group]][moment]
            target[piece.start : piece.start + len(mine)].copy_(mine)


def _place(zero: Any, name: str, parameter: Any, whole_group: bool) -> tuple[Piece, int]:
    """Where this process has its part of a parameter, and the element at which this part begins."""
    if not whole_group:
        group, start, numel = zero.grad_position[zero.get_param_id(parameter)]
        return Piece(name, group, start, numel), numel * distributed.rank()
    mapping = parameter._hp_mapping
    if mapping is None:
        return Piece(name, 0, 0, 0), 0
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Piece(name, mapping.param_group_index, here.start, here.numel), there.start
