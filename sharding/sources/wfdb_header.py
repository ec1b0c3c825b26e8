"""Parses WFDB headers, `.hea`, in their many dialects.

Format: https://www.physionet.org/physiotools/wag/header-5.htm. Lenient where the meaning is unambiguous (dates of
any style on the record line, `name.mat` as record name, `/mv`, no gain), rejected where it is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from sharding.sources.protocol import Rejected
from umbra import leads as lead_names

DEFAULT_GAIN = 200.0
DEFAULT_RATE = 250.0
MAX_SIGNALS = 1024
MAX_PER_FRAME = 1 << 15


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """The fields of a signal line from format to units (`physical = (digital - baseline) / gain` units).

    `resolution` and `zero` are the converter's: its bits (0: not stated) and the middle of its range.

    Lines with the same words share one object, compared by identity, so that derived values can be cached.
    """

    format: str
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    resolution: int = 0
    zero: int = 0


class SignalLine(NamedTuple):
    """One signal line: the location of its samples and their interpretation. `initial`: the value before the first
    sample, for format 8 only (else 0)."""

    file: str
    layout: Layout
    checksum: int | None
    name: str
    initial: int = 0


@dataclass(slots=True)
class Header:
    """`rate` in frames per second; `frames` is None if the header does not state the length.

    A multi-segment record has no `signals` but `segments`: (record name, frames) of each; a gap is named `~`.
    """

    rate: float
    frames: int | None
    signals: list[SignalLine]
    comments: list[str]
    segments: list[tuple[str, int]] = field(default_factory=list)


def common_per_frame(signals: Sequence[SignalLine]) -> int:
    """The greatest common divisor of the ECG leads' numbers of samples per frame (1 without ECG leads)."""
    per_frame = {line.layout.per_frame for line in signals}
    if len(per_frame) > 1:
        per_frame = {line.layout.per_frame for line in signals if lead_names.canonical(line.name)}
    return math.gcd(*per_frame) or 1


def parse_header(text: str) -> Header:
    """Parses the text of a `.hea` file. Raises `Rejected` if it is ambiguous or invalid."""
    lines, comments = [], []
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise Rejected("header", "empty")
    name, count, rate, frames = _record_line(lines[0])
    if "/" in name:
        return Header(rate, frames, [], comments, _segments(name, lines[1:], frames))
    if not 1 <= count <= MAX_SIGNALS or len(lines) - 1 < count:
        raise Rejected("header", f"{count} signals announced, {len(lines) - 1} lines follow")
    return Header(rate, frames, [_signal_line(line) for line in lines[1 : count + 1]], comments)


def _segments(name: str, lines: list[str], frames: int | None) -> list[tuple[str, int]]:
    """(record name, frames) of each segment line of the record `NAME/COUNT`. Raises `Rejected`."""
    count = _integer(name.partition("/")[2], "number of segments")
    if not 1 <= count <= len(lines):
        raise Rejected("header", f"{count} segments announced, {len(lines)} lines follow")
    segments = []
    for line in lines[:count]:
        words = line.split()
        if len(words) < 2:
            raise Rejected("header", "segment line without a length")
        segments.append((words[0], _integer(words[1], "length of a segment")))
    lengths = [length for _, length in segments]
    if min(lengths) < 0 or not any(lengths):
        raise Rejected("header", "segments of no length")
    if frames and sum(lengths) != frames:
        raise Rejected("header", f"segments of {sum(lengths)} samples in a record of {frames}")
    return segments


def _record_line(line: str) -> tuple[str, int, float, int | None]:
    """(name, signals, rate, frames): base time and date, in any style, are ignored."""
    words = line.split()
    if len(words) < 2:
        raise Rejected("header", "record line without the number of signals")
    count = _integer(words[1], "number of signals")
    rate = DEFAULT_RATE
    if len(words) > 2:
        rate = _number(words[2].split("/")[0].split("(")[0], "sampling rate")
    samples = int(words[3]) if len(words) > 3 and re.fullmatch(r"[0-9]{1,18}", words[3]) else None
    if len(words) > 3 and samples is None and not re.fullmatch(r"\d[\w:./-]*", words[3], re.ASCII):
        raise Rejected("header", "number of samples is not a number")
    return words[0], count, rate, samples


def _signal_line(line: str) -> SignalLine:
    words = line.split(None, 8)
    if len(words) < 2:
        raise Rejected("header", "signal line without a format")
    gain, bits, zero = (words[i] if len(words) > i else default for i, default in ((2, ""), (3, "0"), (4, "0")))
    layout, named = _layout(words[1], gain, bits, zero)
    if named:
        return SignalLine(words[0], layout, None, " ".join(words[2:]))
    checksum = _integer(words[6], "checksum") if len(words) > 6 else None
    initial = _integer(words[5] if len(words) > 5 else zero, "initial value") if layout.format == "8" else 0
    return SignalLine(words[0], layout, checksum, words[8] if len(words) > 8 else "", initial)


@lru_cache(maxsize=4096)
def _layout(form: str, gain: str, bits: str, zero: str) -> tuple[Layout, bool]:
    """(the layout of the words from format to units, whether the word after the format is a name and not a gain)."""
    if not gain:
        return Layout(*_format_word(form), DEFAULT_GAIN, 0, ""), False
    parsed = _gain_word(gain)
    if parsed is None:
        return Layout(*_format_word(form), DEFAULT_GAIN, 0, ""), True
    value, baseline, units = parsed
    adc_zero = _integer(zero, "ADC zero")
    resolution = int(bits) if re.fullmatch("[0-9]{1,2}", bits) else 0
    middle = adc_zero if baseline is None else baseline
    return Layout(*_format_word(form), value, middle, units, resolution, adc_zero), False


@lru_cache(maxsize=4096)
def _format_word(word: str) -> tuple[str, int, int, int]:
    match = re.fullmatch(r"([0-9]+)(?:x([0-9]{1,9}))?(?::([0-9]{1,9}))?(?:\+([0-9]{1,15}))?", word)
    if not match:
        raise Rejected("header", "format is not a number")
    form, per_frame, skew, offset = match.groups()
    if per_frame and not 1 <= int(per_frame) <= MAX_PER_FRAME:
        raise Rejected("frames", f"{per_frame} samples per frame")
    return form, int(per_frame or 1), int(skew or 0), int(offset or 0)


@lru_cache(maxsize=4096)
def _gain_word(word: str) -> tuple[float, int | None, str] | None:
    """(gain, baseline, units) of `1000.0(0)/mV` and its short forms; None if the word is not a gain."""
    match = re.fullmatch(r"([-+]?[0-9.]*(?:[eE][-+]?[0-9]+)?)(?:\(([-+]?[0-9]{1,12})\))?(?:/(\S*))?", word)
    if not match:
        return None
    number, baseline, units = match.groups()
    gain = _number(number, "gain") if number else 0.0
    if gain < 0:
        raise Rejected("gain", "negative gain")
    if gain and not 1e-9 <= gain <= 1e12:
        raise Rejected("gain", f"gain {gain:g}")
    return gain or DEFAULT_GAIN, None if baseline is None else int(baseline), units or ""


def _number(word: str, what: str) -> float:
    try:
        value = float(word)
    except ValueError as error:
        raise Rejected("header", f"{what} is not a number") from error
    if not math.isfinite(value):
        raise Rejected("header", f"{what} is not finite")
    return value


def _integer(word: str, what: str) -> int:
    try:
        if len(word) <= 19 and word.isascii() and "_" not in word:
            return int(word)
    except ValueError:
        pass
    raise Rejected("header", f"{what} is not an integer")


_WORDS = {
    "age": "age",
    "sex": "sex",
    "gender": "sex",
    "dx": "codes",
    "patient id": "patient",
    "patient": "patient",
    "subject id": "patient",
    "subject_id": "patient",
    "patient_id": "patient",
}


_BRACKETED = re.compile(r"(?=<[\w ]+>)")  # INCART: `<age>: 65 <sex>: F` on one line


def words_of(comments: list[str]) -> dict[str, str]:
    """The values of comments such as `# Age: 63` and `#<age>: 63`; all other comments are ignored."""
    found: dict[str, str] = {}
    for part in (part for comment in comments for part in _BRACKETED.split(comment)):
        key, colon, value = part.partition(":")
        kind = _WORDS.get(key.strip().strip("<>").lower())
        if colon and kind and kind not in found:
            found[kind] = value.strip()
    return found
