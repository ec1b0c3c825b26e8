"""What a user gives `Encoder.embed`, as groups of ECGs of one shape: arrays, tensors, lists of these, and files."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umbra import leads as lead_names
from umbra.errors import UserError
from umbra.signal import RATES, to_millivolt

REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64}
REAL |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}


@dataclass(frozen=True)
class Group:
    """ECGs of one shape: `x` [B, signals, samples], times `factor` in mV, at `rate` Hz; `names` of the signals."""

    x: Tensor
    names: tuple[str, ...]
    rate: float
    factor: float


@dataclass(frozen=True)
class Given:
    """The groups in order; `form`: whether it was `one` ECG, a `batch` in one array, or a `list`; `tensor`: the tensor
    that was given, or the first of a list, if it was one."""

    groups: list[Group]
    form: str
    tensor: Tensor | None = None


@dataclass(frozen=True)
class Stated:
    """What a user says about arrays. `wanted`: the leads of the encoder."""

    rate: float | None
    leads: Sequence[str] | None
    units: str | float | None
    source: Mapping[str, Any]
    wanted: Sequence[str]


def given(ecg: Any, stated: Stated) -> Given:
    """The groups of ECGs of `ecg`. Raises `UserError` that names the argument which cannot be used."""
    if isinstance(ecg, str | os.PathLike):
        return Given([_from_file(ecg, stated)], "one")
    if isinstance(ecg, list | tuple) and any(isinstance(item, str | os.PathLike) or _axes(item) > 1 for item in ecg):
        groups = [_item(item, f"ecg[{number}]", stated) for number, item in enumerate(ecg)]
        return Given(groups, "list", ecg[0] if isinstance(ecg[0], Tensor) else None)
    x = _tensor(ecg, "ecg")  # an empty list too
    if x.ndim not in (1, 2, 3) or not x.numel():
        raise UserError(f"ecg has shape {list(x.shape)}: give [leads, samples], or [batch, leads, samples]")
    group = _group(x[(None,) * (3 - x.ndim)], "ecg", stated)
    return Given([group], "batch" if x.ndim == 3 else "one", ecg if isinstance(ecg, Tensor) else None)


def _axes(item: Any) -> int:
    """The axes of one of a list; of nested lists, the depth."""
    if isinstance(item, list | tuple):
        return 1 + (_axes(item[0]) if item else 0)
    return int(getattr(item, "ndim", 0))


def _item(item: Any, name: str, stated: Stated) -> Group:
    if isinstance(item, str | os.PathLike):
        return _from_file(item, stated)
    x = _tensor(item, name)
    if x.ndim != 2:
        raise UserError(f"{name} has shape {list(x.shape)}: each ECG of a list is [leads, samples]")
    return _group(x[None], name, stated)


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor of real numbers, without a copy where that is possible."""
    if isinstance(values, list | tuple) and values and all(isinstance(v, Tensor) for v in values):
        values = [v.detach().cpu().numpy() for v in values]
    if not isinstance(values, Tensor):
        try:
            array = np.ma.filled(values.astype(float), np.nan) if np.ma.isMaskedArray(values) else np.asarray(values)
        except Exception as error:  # of any library's array
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name} is no array: leads of different lengths? ({reason})") from error
        if array.dtype.kind not in "iuf":
            raise UserError(f"{name} is {_described(values, array)}: give real numbers, NumPy or torch")
        wide = (array.dtype.kind == "u" and array.dtype.itemsize > 1) or array.dtype.itemsize > 8
        array = np.asarray(array, np.float64 if wide else array.dtype.newbyteorder("="), order="C")
        values = torch.from_numpy(array if array.flags.writeable else array.copy())
    if values.dtype not in REAL or values.layout != torch.strided or values.is_meta:
        raise UserError(f"{name} is a tensor of {values.dtype}, {values.layout}, on {values.device}: give real numbers")
    return values.detach()


def _described(values: Any, array: np.ndarray) -> str:
    return f"an array of {array.dtype}" if array.ndim else f"of type {type(values).__name__}"


def _group(x: Tensor, name: str, stated: Stated) -> Group:
    """A group of arrays [B, leads, samples], with the names, rate and unit that the user states."""
    shape = list(x.shape[1:]) if len(x) == 1 else list(x.shape)
    names = _names(stated)
    rows, samples = x.shape[1:]
    if rows != len(names):
        if samples == len(names):
            turned = f"{name}.T" if len(x) == 1 else f"{name}.transpose(0, 2, 1)"
            raise UserError(f"{name} {shape} is [samples, leads]: give [leads, samples], {turned}")
        what = f"{len(names)} names" if stated.leads is not None else f"the {len(names)} leads of the encoder"
        raise UserError(f"leads: {name} {shape} has {rows} leads for {what}: leads=[...] names them in their order")
    if stated.source:
        raise UserError("source= is for files that do not state all: leave it out for arrays")
    if stated.rate is None:
        raise UserError("rate is not given: rate=... is the sampling rate of ecg in Hz")
    return Group(x, names, _rate(stated.rate), factor_of(stated.units))


def _names(stated: Stated) -> tuple[str, ...]:
    if stated.leads is None:
        return tuple(stated.wanted)
    names = stated.leads.tolist() if hasattr(stated.leads, "tolist") else stated.leads
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"leads={stated.leads!r} must be a list of names, such as ['I', 'II', 'V1']")
    return tuple(names)


def _rate(rate: Any) -> float:
    low, high = RATES
    if isinstance(rate, bool) or not isinstance(rate, Real) or not low <= float(rate) <= high:
        raise UserError(f"rate={rate!r} must be a sampling rate of {low:g} to {high:g} Hz")
    return float(rate)


def factor_of(units: Any) -> float:
    """Millivolts per unit. Raises `UserError` for units that are neither a voltage nor a positive number."""
    if units is None:
        return 1.0
    factor = to_millivolt(units) if isinstance(units, str) and units else units
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < float(factor) < math.inf:
        raise UserError(f"units={units!r} must be mV, uV, nV, V, or a number of millivolts per unit")
    return float(factor)


def _from_file(path: str | os.PathLike[str], stated: Stated) -> Group:
    """The ECG of a file, read by `sharding.recording`, the one thing for which this package asks for that one."""
    try:
        reader = importlib.import_module("sharding.recording")
    except (ImportError, SystemExit) as error:  # the latter where a package that sharding needs is missing
        raise UserError(f"ecg={str(path)!r} is a path, and reading files needs: pip install 'umbra[shard]'") from error
    names = None if stated.leads is None else list(_names(stated))
    factor = factor_of(stated.units)
    units = stated.units if isinstance(stated.units, str | None) else repr(factor)
    rate = None if stated.rate is None else _rate(stated.rate)
    mv, found, at = reader.read(os.fspath(path), stated.wanted, rate, names, units, dict(stated.source))
    return Group(torch.from_numpy(mv)[None], tuple(found), at, 1.0)


# ---- leads ----


@dataclass(frozen=True)
class Placed:
    """How the encoder's leads come from a group's signals: `names` and `rows` of the signals that are needed, the leads
    that are `present` (or `derived` from I and II), those `missing`, and the `unknown` names."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    present: tuple[str, ...]
    derived: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def placed(names: Sequence[str], wanted: Sequence[str]) -> Placed:
    """Raises `UserError` if a lead occurs twice, or none of `wanted` is there."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        key = lead_names.canonical(name) or name
        if key in rows and (key in wanted or key in lead_names.CANONICAL):
            raise UserError(f"leads={list(names)}: {key} occurs twice")
        rows[key] = row
    missing = tuple(lead_names.missing(rows, wanted))
    present = tuple(lead for lead in wanted if lead not in missing)
    if not present:
        raise UserError(f"leads={list(names)}: none of them is a lead of the encoder, {', '.join(wanted)}")
    needed = tuple(lead_names.needed(rows, present))
    derived = tuple(lead for lead in present if lead not in rows)
    unknown = tuple(name for name in rows if name not in wanted and not lead_names.canonical(name))
    return Placed(needed, tuple(rows[name] for name in needed), present, derived, missing, unknown)


def arranged(x: Tensor, place: Placed, wanted: Sequence[str]) -> Tensor:
    """`x` [B, place.names, samples] in the order of `wanted`: limb leads derived, missing leads zero."""
    rows = {name: row for row, name in enumerate(place.names)}
    out = x.new_zeros(len(x), len(wanted), x.shape[2])
    for row, lead in enumerate(wanted):
        if lead in rows:
            out[:, row] = x[:, rows[lead]]
        elif lead in place.derived:
            out[:, row] = lead_names.derived(lead, x[:, rows["I"]], x[:, rows["II"]])
    return out


# ---- values that are not finite ----


def finite(group: Group, policy: str, name: str) -> list[tuple[Group, int]]:
    """The group with finite values, as (group, filled samples); split into single ECGs where some had to be filled.

    A lead without any value is left out. `policy` `fill`: gaps are interpolated linearly, as a build does before it
    filters; `refuse`: raises `UserError` that says where they are.
    """
    if not group.x.is_floating_point() or all(bool(end.isfinite()) for end in torch.aminmax(group.x)):
        return [(group, 0)]  # the extremes are NaN where any value is
    if policy == "refuse":
        raise UserError(_where(group, name))
    names = [f"{name}[{i}]" for i in range(len(group.x))] if len(group.x) > 1 else [name]
    return [_filled(replace(group, x=ecg[None]), own) for ecg, own in zip(group.x, names)]


def _where(group: Group, name: str) -> str:
    bad = (~group.x.isfinite()).nonzero()
    number, row = bad[0, :2].tolist()
    times = bad[(bad[:, 0] == number) & (bad[:, 1] == row), 2] / group.rate
    ecg = f"{name}[{number}]" if len(group.x) > 1 else name
    span = f"from {times.min():.3f} to {times.max():.3f} s"
    return (
        f"{ecg} has {len(times)} values that are not finite in lead {group.names[row]}, {span}, and {len(bad)} in all: "
        "nan='fill' interpolates them"
    )


def _filled(group: Group, name: str) -> tuple[Group, int]:
    x = group.x[0].double().cpu().numpy()
    good = np.isfinite(x)
    rows = np.flatnonzero(good.any(1))
    if not len(rows):
        raise UserError(f"{name} has no finite value at all")
    out = x[rows]
    for lead, there in zip(out, good[rows]):
        lead[~there] = np.interp(np.flatnonzero(~there), np.flatnonzero(there), lead[there])
    names = tuple(group.names[row] for row in rows)
    filled = int((~good[rows]).sum())
    return replace(group, x=torch.from_numpy(out)[None].to(group.x.device), names=names), filled
