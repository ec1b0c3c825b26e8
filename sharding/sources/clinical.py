"""Clinical exports: GE MUSE XML, Philips XML, HL7 aECG, DICOM waveform, SCP-ECG and EDF.

Files are decoded by the package ecgdatakit (`pip install umbra[clinical]`). This module decides what is accepted as an
ECG and which patient data are passed on; names, dates and statements are dropped immediately.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding import signal
from sharding.saturation import Limits, saturation
from sharding.sources.protocol import Head, Recording, Rejected, SourceConfig, contained, files_below, refuse_unused
from umbra import leads as lead_names
from umbra.errors import UserError

ENDINGS = (".xml", ".dcm", ".scp", ".edf")
MAX_XML = 8 << 20
MAX_FILE = 32 << 20
PARSERS = {  # the package's class for each accepted format -> largest file in bytes
    "GEMuseXMLParser": MAX_XML,
    "SierraXMLParser": MAX_XML,
    "HL7aECGParser": MAX_XML,
    "DICOMWaveformParser": MAX_FILE,
    "SCPECGParser": MAX_FILE,
    "EDFParser": MAX_FILE,
}
MAX_XLI = 1 << 18
MAX_XLI_LEAD = 1 << 15


def check(options: SourceConfig) -> None:
    """Raises `UserError` if the packages that decode these formats are missing, and for options of arrays."""
    refuse_unused(options)
    _package()


def find(root: Path, without: str, options: SourceConfig) -> list[str]:
    """Names (relative paths) of all files with a clinical ending under `root`, sorted."""
    return files_below(root, without, ENDINGS)


def head(root: Path, record: str, options: SourceConfig) -> Head:
    """The metadata of a file. These formats have no separate header: the whole file is decoded. See `Head`."""
    parsed = _parsed(root, record)
    samples = _samples(parsed.leads)
    return Head(_rate(parsed), samples, _names(parsed), [record], _words(parsed))


def read(root: Path, record: str, wanted: Sequence[str], options: SourceConfig) -> Recording:
    """The leads needed for `wanted`, in millivolts. See `Recording`."""
    parsed = _parsed(root, record)
    try:
        rows = lead_names.index(_names(parsed))
    except ValueError as error:
        raise Rejected("duplicate_lead", str(error)) from error
    if absent := lead_names.missing(rows, wanted):
        groups = len(parsed.raw_metadata.get("multiplex_groups", [])) - bool(parsed.median_beats)
        if groups > 1:  # DICOM; the package decodes the first group only
            raise Rejected("multi_segment", f"{groups} multiplex groups, of which the first lacks {' '.join(absent)}")
        raise Rejected("missing_lead", " ".join(absent))
    names = lead_names.needed(rows, wanted)
    chosen = [parsed.leads[rows[name]] for name in names]
    mv = np.empty((len(names), _samples(parsed.leads)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 count as missing
        for row, lead in zip(mv, chosen):
            row[:] = _millivolt(lead)
    missing = ~np.isfinite(mv)
    at_limit, saturated = saturation(
        np.stack([lead.samples for lead in chosen]), *_limits(parsed, chosen), _rate(parsed)
    )
    mv[missing] = 0.0
    flags = [] if parsed.raw_metadata.get("checksum_valid", True) in (True, None) else ["checksum"]
    flags += ["derived"] if any(name not in rows for name in wanted) else []
    lost = np.logical_or.reduce(missing, axis=0) if missing.any() else None
    return Recording(mv, names, _rate(parsed), lost, saturated, tuple(flags), at_limit)


# ---- interpretation of a decoded file ----


def _names(parsed: Any) -> list[str]:
    """The leads' names; a duplicate `II`, which the package calls `II_2`, is renamed to `II` so that it is detected."""
    labels = [lead.label for lead in parsed.leads]
    plain = [re.sub(r"_\d+$", "", label) for label in labels]
    return [name if name in labels else label for label, name in zip(labels, plain)]


def _samples(leads: Sequence[Any]) -> int:
    """Samples per lead of the ECG leads (an EDF may hold other signals at other rates). Raises `Rejected`."""
    ecg = [lead for lead in leads if lead_names.canonical(lead.label)]
    lengths = {(len(lead.samples), lead.sampling_rate, lead.annotations.get("start_sample", "1")) for lead in ecg}
    if len(lengths) > 1:
        raise Rejected("skew", "leads of different lengths, rates or starts")
    if any(abs(float(lead.annotations.get("sample_skew_ms", 0))) >= 1 for lead in ecg):
        raise Rejected("skew", "leads with skew")
    samples = next(iter(lengths))[0] if lengths else 0
    if ecg and not samples:
        raise Rejected("empty", "no samples")
    return samples


def _rate(parsed: Any) -> float:
    """The leads' rate in Hz, exact where the package rounds it. Raises `Rejected`."""
    meta = parsed.raw_metadata
    lead = next((lead for lead in parsed.leads if lead_names.canonical(lead.label)), parsed.leads[0])
    group: dict[str, Any] = next(iter(meta.get("multiplex_groups", [])), {})
    exact = (
        meta.get("exact_sampling_rates", {}).get(lead.label)
        or meta.get("rhythm_time", {}).get("sampling_rate_exact")
        or group.get("sampling_frequency")
    )
    near = exact if exact and abs(exact - lead.sampling_rate) < 1 else lead.sampling_rate
    rate = float(round(near) if abs(near - round(near)) < 1e-3 else near)
    low, high = signal.RATES
    if not low <= rate <= high:
        raise Rejected("rate", f"{rate:g} Hz")
    return rate


def _millivolt(lead: Any) -> NDArray[np.float64]:
    """Converts stored samples to millivolts: times resolution plus offset, in the file's unit. Raises `Rejected`."""
    factor = signal.to_millivolt(lead.resolution_unit) if lead.resolution_unit else None
    if factor is None:
        raise Rejected("units", f"lead {lead.label} in '{lead.resolution_unit[:16] or 'no unit'}'")
    stated = lead.adc_resolution  # 0 if the file states none and the package assumes 1
    if not (stated and lead.resolution and np.isfinite(lead.resolution) and np.isfinite(lead.offset)):
        raise Rejected("gain", f"lead {lead.label}: {stated:g} {lead.resolution_unit[:16]} per step")
    return (lead.samples * lead.resolution + lead.offset) * factor


def _limits(parsed: Any, chosen: Sequence[Any]) -> tuple[Limits, Limits]:
    """(lowest and highest sample of each lead's converter, of what the file can hold).

    EDF states them, others the bits of a sample (16 where they do not). The 0 of unsigned samples, of which padding is
    made, is none.
    """
    layout = parsed.recording.acquisition.signal
    bits = layout.bits_per_sample if layout.bits_per_sample in range(1, 33) else 16
    stated, wide = (
        (-1, (1 << n) - 1) if layout.signal_signed is False else (-1 << (n - 1), (1 << (n - 1)) - 1)
        for n in (bits, 16 if bits <= 16 else 32)
    )
    names = ("digital_minimum", "digital_maximum")
    own = [tuple(int(lead.annotations[name]) for name in names if name in lead.annotations) for lead in chosen]
    return [(pair[0], pair[1]) if len(pair) == 2 else stated for pair in own], [wide] * len(chosen)


def _words(parsed: Any) -> dict[str, str]:
    """Patient id, age and sex only. An age that the file does not state is computed from its dates.

    A plain EDF (not EDF+) has one free-text patient field, which often contains name and birth date: its hash serves as
    the patient id.
    """
    patient = parsed.patient
    words = {"patient": patient.patient_id.strip(), "sex": patient.sex if patient.sex in ("M", "F") else ""}
    if words["patient"] and parsed.source_format == "edf":
        words["patient"] = hashlib.sha256(words["patient"].encode("utf-8", "surrogateescape")).hexdigest()[:16]
    if patient.age is not None and 0 <= patient.age < 150:
        words["age"] = str(patient.age)
    return {kind: word for kind, word in words.items() if word}


# ---- calls to the package ----


def _package() -> Any:
    try:
        import ecgdatakit
        import pydicom  # noqa: F401  (ecgdatakit imports it for DICOM files)
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        raise UserError(f"source.format=clinical needs the package {name}: pip install umbra[clinical]") from error
    return ecgdatakit


def _parsed(root: Path, record: str) -> Any:
    """The decoded file, samples as stored. Raises only `Rejected` and `OSError`, whatever the bytes."""
    package = _package()
    path = contained(root, record)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Rejected("unreadable", "not a regular file")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _check_format(path, package.FileParser.detect_format(path))
            parsed = package.FileParser.parse(path, auto_scale=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_file", "file") from error
    except (Rejected, OSError):
        raise
    except package.UnsupportedFormatError as error:
        raise Rejected("format", _short(error)) from error
    except Exception as error:  # the package's own errors, and any other that malformed files cause in it
        raise Rejected("truncated" if "truncated" in str(error) else "header", _short(error)) from error
    _check_whole(parsed, [str(warning.message) for warning in caught])
    return parsed


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _check_format(path: str, known: dict[str, Any] | None) -> None:
    """Rejects other formats, and files that are too large or may decompress to far more than an ECG."""
    parser = known["parser"] if known else ""
    if parser not in PARSERS:
        raise Rejected("format", known["name"] if known else "none of the clinical formats")
    if (size := os.stat(path).st_size) > PARSERS[parser]:
        raise Rejected("too_large", f"{size} bytes")
    if parser == "DICOMWaveformParser":
        from pydicom import filereader, uid

        if filereader.read_file_meta_info(path).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            raise Rejected("format", "a deflated DICOM file")
    if parser == "SierraXMLParser":
        _check_compressed(Path(path).read_bytes())


def _check_compressed(text: bytes) -> None:
    """Rejects Philips waveforms whose XLI compression (LZW: up to 600 to 1) could expand to far more than an ECG."""
    from ecgdatakit.parsing.helpers.xml import parse_xml_root

    if b"xli" not in text.replace(b"\0", b"").lower():  # UTF-8 or UTF-16
        return
    for element in parse_xml_root(text).iter():
        if str(element.tag).lower() != "parsedwaveforms":
            continue
        try:
            data = base64.b64decode("".join("".join(element.itertext()).split()), validate=True)
        except binascii.Error:
            continue  # the package rejects it too
        place, longest = 0, 0
        while 0 <= place <= len(data) - 8:
            size = int.from_bytes(data[place : place + 4], "little", signed=True)
            longest = max(longest, min(size, len(data)))
            place = place + 8 + size if size > 0 else -1
        if len(data) > MAX_XLI or longest > MAX_XLI_LEAD:
            raise Rejected("too_large", f"{len(data)} bytes of compressed waveforms")


def _check_whole(parsed: Any, messages: Sequence[str]) -> None:
    """Rejects what the package accepts with only a warning: a truncated EDF, or one with gaps."""
    if not parsed.leads:
        raise Rejected("empty", "no rhythm waveform")
    if cut := next((message for message in messages if message.startswith("EDF file truncated")), ""):
        raise Rejected("truncated", cut)
    onsets = np.array(parsed.raw_metadata.get("record_onsets", []), float)
    step = parsed.raw_metadata.get("record_duration", 0.0)
    if len(onsets) > 1 and not np.allclose(np.diff(onsets), step, rtol=0, atol=1e-3):
        raise Rejected("multi_segment", "an EDF with gaps")
