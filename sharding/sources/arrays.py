"""Shared by the sources of bare arrays: an array `[leads, samples]` in some unit -> `Recording` in millivolts."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding import signal
from sharding.saturation import converter, saturation
from sharding.sources.protocol import ArrayConfig, Recording, Rejected, contained
from umbra import leads as lead_names
from umbra.errors import UserError

MAX_VALUES = 1 << 26


def check_options(options: ArrayConfig, needed: Sequence[str] = ()) -> None:
    """Raises `UserError` for invalid options; `needed`: the keys that this format requires."""
    for key in needed:
        if not getattr(options, key):
            raise UserError(f"source.array.{key} is required: {_MEANING[key]}")
    low, high = signal.RATES
    if options.rate and not low <= options.rate <= high:
        raise UserError(f"source.array.rate={options.rate:g} must be between {low:g} and {high:g} Hz")
    if millivolts(options.units) is None:
        raise UserError(f"source.array.units={options.units} is neither mV, uV, nV, V nor a positive number")
    if strange := [name for name in options.leads if not lead_names.canonical(name)]:
        # leads other than the twelve are allowed and ignored, but if all are others, it is probably a mistake
        known = ", ".join(lead_names.CANONICAL)
        if len(strange) == len(options.leads):
            raise UserError(f"source.array.leads={options.leads}: none of them is among {known}")


_MEANING = {
    "rate": "the arrays' sampling rate in Hz",
    "leads": "the arrays' leads in order",
    "signals": "the name of the array (HDF5 dataset, npz key, file ending in a tar)",
}


def millivolts(units: str) -> float | None:
    """Millivolts per unit of the array; None if `units` is neither a voltage nor a positive number."""
    factor = signal.to_millivolt(units) if units else None
    if factor is not None:
        return factor
    try:
        value = float(units)
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None


def two_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` without axes of length 1, as far as two axes are left (EchoNext's records are `[1, samples, leads]`)."""
    axes = list(shape)
    while len(axes) > 2 and 1 in axes:
        axes.remove(1)
    return tuple(axes)


def check_shape(shape: Sequence[int], options: ArrayConfig, names: Sequence[str]) -> int:
    """Samples per lead of an array of this shape and lead names. Raises `Rejected` if they do not match."""
    shape = two_axes(shape)
    if len(shape) != 2:
        raise Rejected("shape", f"an array of shape {tuple(shape)}, not two-dimensional")
    rows, samples = (shape[1], shape[0]) if options.leads_last else (shape[0], shape[1])
    if rows != len(names):
        turned = "; are the leads the other axis (source.array.leads_last)?" if samples == len(names) else ""
        raise Rejected("shape", f"{rows} rows for {len(names)} leads{turned}")
    if samples <= 0:
        raise Rejected("empty", "no samples")
    if rows * samples > MAX_VALUES:
        raise Rejected("too_large", f"{samples} samples of {rows} signals")
    return samples


def recording(
    values: NDArray,
    wanted: Sequence[str],
    options: ArrayConfig,
    names: Sequence[str] | None = None,
    rate: float | None = None,
) -> Recording:
    """The leads needed for `wanted` from a numeric array, as `Recording`; `names` and `rate` default to the options'.

    NaN and infinity count as missing samples. Raises `Rejected`.
    """
    names = options.leads if names is None else names
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise Rejected("format", f"an array of {values.dtype}, not of real numbers")
    check_shape(values.shape, options, names)
    values = values.reshape(two_axes(values.shape))
    try:
        rows = lead_names.index(names)
    except ValueError as error:
        raise Rejected("duplicate_lead", str(error)) from error
    if absent := lead_names.missing(rows, wanted):
        raise Rejected("missing_lead", " ".join(absent))
    chosen = lead_names.needed(rows, wanted)
    picked = (values.T if options.leads_last else values)[[rows[name] for name in chosen]]
    if options.trim:
        picked = trimmed(picked)
    factor = millivolts(options.units)
    assert factor is not None  # checked by `check_options`
    with np.errstate(over="ignore"):  # values beyond float32 count as missing
        mv = np.multiply(picked, factor, dtype=np.float64).astype(np.float32)
    finite = np.isfinite(mv)
    missing: NDArray[np.bool_] | None = None
    if not finite.all():
        missing = np.logical_not(finite.all(axis=0))
        mv[~finite] = 0.0
    flags = ("derived",) if any(name not in rows for name in wanted) else ()
    rate = options.rate if rate is None else rate
    at_limit, saturated = _saturation(picked, rate, options.bits)
    return Recording(mv, chosen, rate, missing, saturated, flags, at_limit)


def _saturation(values: NDArray, rate: float, bits: int) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """`saturation` at the limits of an integer type, or of a converter of `bits`; the 0 of an unsigned one, of which
    padding is made, is none."""
    if not np.issubdtype(values.dtype, np.integer):
        return None, None
    kind = np.iinfo(values.dtype)
    lowest = kind.min if kind.min < 0 else -1
    low, high = converter(bits, 0 if kind.min < 0 else (1 << bits) // 2, (lowest, kind.max))
    limits, widest = [(low if kind.min < 0 else -1, high)] * len(values), [(lowest, kind.max)] * len(values)
    return saturation(values, limits, widest, rate)


def trimmed(values: NDArray) -> NDArray:
    """`values` [leads, samples] without the zeros in all leads at both ends. Raises `Rejected` if nothing is left."""
    busy = np.flatnonzero(values.any(axis=0))
    if not len(busy):
        raise Rejected("empty", "only zeros")
    return values[:, busy[0] : busy[-1] + 1]


def regular_file(root: Path, path: str) -> str:
    """`root/path` if it is a regular file in `root`. Raises `Rejected`."""
    full = contained(root, path)
    try:
        mode = os.stat(full).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", path) from error
    if not stat.S_ISREG(mode):
        raise Rejected("unreadable", f"{path} is not a regular file")
    return full


def usable(options: ArrayConfig) -> None:
    """Raises `Rejected` if no array can be read with these options."""
    try:
        check_options(options)
    except UserError as error:
        raise Rejected("units", str(error)) from error
    low, high = signal.RATES
    if not low <= options.rate <= high:
        raise Rejected("rate", f"source.array.rate={options.rate:g} Hz")
