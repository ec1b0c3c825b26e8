"""One recording of any format, without a build: what `umbra.Encoder.embed` asks for when it is given a path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.options import REASONS
from sharding.sources import protocol
from sharding.sources.protocol import FORMATS, ArrayConfig, Rejected, SourceConfig
from umbra import leads as lead_names
from umbra.errors import UserError, near_miss
from umbra.typed import typed

STATED = ("wfdb", "clinical")  # formats that state rate, leads and units themselves


def read(
    path: str,
    wanted: Sequence[str],
    rate: float | None = None,
    leads: Sequence[str] | None = None,
    units: str | None = None,
    array: Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], list[str], float]:
    """(mV [names, samples] with NaN where samples are missing, canonical names, rate in Hz) of the recording at `path`.

    Only the signals that `wanted` needs, as far as they are there. `FILE#ID` is one of several in a file. A bare array
    needs `rate`, and takes `leads` (None: `wanted`), `units` (None: mV) and further keys of `ArrayConfig` in `array`.
    Raises `UserError` for a file that cannot be read, and for arguments that are missing or have no effect.
    """
    name, root, record = _located(path)
    stated = {"rate": rate, "leads": leads, "units": units, **(array or {})}
    options = _options(path, name, {key: value for key, value in stated.items() if value is not None}, wanted)
    source = protocol.module(name)
    try:
        source.check(options)
        head = source.head(root, record, options)
        present = _rows(path, head.leads)
        absent = lead_names.missing(present, wanted)
        if len(absent) == len(wanted):
            raise UserError(f"ecg={path}: none of {', '.join(head.leads)} is a lead of the encoder")
        chosen = [lead for lead in wanted if lead not in absent]
        return _joined([source.read(root, record, chosen, options, *span) for span in _spans(source, head)])
    except Rejected as error:
        raise UserError(f"ecg={path}: {REASONS.get(error.reason, error.reason)} ({error.detail})") from error
    except OSError as error:
        raise UserError(f"ecg={path} cannot be read: {error.strerror or error}") from error


def _rows(path: str, leads: Sequence[str]) -> dict[str, int]:
    try:
        return lead_names.index(leads)
    except ValueError as error:
        raise UserError(f"ecg={path}: {error}, in {', '.join(leads)}") from error


def _located(path: str) -> tuple[str, Path, str]:
    """(format, folder, name of the record in it) by the ending; signals with a header beside them are WFDB."""
    if not Path(path).name or "\0" in path or len(os.path.basename(path)) > 255:
        raise UserError(f"ecg={path[:80]!r} is not the path of a recording")
    place = Path(path)
    bare = place.with_suffix("") if place.suffix.lower() in (".hea", ".dat", ".mat") else place
    if bare.with_name(f"{bare.name}.hea").is_file():
        return "wfdb", bare.parent, bare.name
    file = Path(path if place.exists() else path.partition("#")[0])
    for name in FORMATS:
        if file.name.lower().endswith(protocol.module(name).ENDINGS):
            if not file.is_file():
                raise UserError(f"ecg={path} does not exist")
            return name, file.parent, str(place.relative_to(file.parent))
    known = ", ".join(ending for name in FORMATS for ending in protocol.module(name).ENDINGS)
    raise UserError(f"ecg={path} is neither a WFDB record (no {bare.name}.hea) nor a file that ends in one of {known}")


def _options(path: str, name: str, stated: dict[str, Any], wanted: Sequence[str]) -> SourceConfig:
    if name in STATED:
        if stated:
            raise UserError(f"{next(iter(stated))}= has no effect: {path} states rate, leads and units itself")
        return SourceConfig(format=name)
    if "rate" not in stated:
        raise UserError(f"rate is not given: rate=... is the sampling rate in Hz of the array in {path}")
    known = [field.name for field in fields(ArrayConfig)]
    if unknown := [key for key in stated if key not in known]:
        raise UserError(f"source: '{unknown[0]}' is unknown{near_miss(unknown[0], known)}")
    try:
        array = typed(ArrayConfig, {**asdict(ArrayConfig()), "leads": list(wanted), **stated})
    except ValueError as error:
        raise UserError(f"source: {error}") from error
    return SourceConfig(format=name, array=array)


def _spans(source: protocol.Source, head: protocol.Head) -> list[tuple[tuple[int, int], ...]]:
    """The arguments `span` that read a recording piece by piece, where its source can and must."""
    if not isinstance(source, protocol.PiecewiseSource):
        return [()]
    step = max(source.MAX_READ // max(len(head.leads), 1), 1)
    return [((first, min(first + step, head.samples)),) for first in range(0, head.samples, step)]


def _joined(pieces: Sequence[protocol.Recording]) -> tuple[NDArray[np.float32], list[str], float]:
    for piece in pieces:
        if piece.missing is not None:
            piece.mv[:, piece.missing] = np.nan
    mv = pieces[0].mv if len(pieces) == 1 else np.concatenate([piece.mv for piece in pieces], 1)
    return mv, list(pieces[0].leads), pieces[0].rate
