"""WFDB signal files packed bit by bit after the specification, as a reference that shares no code with any reader.

https://physionet.org/physiotools/wag/signal-5.htm: samples in the order frame by frame, in a frame signal by signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import soundfile

BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
BITS |= {"508": 8, "516": 16, "524": 24}
PACKED = tuple(form for form in BITS if not form.startswith("5"))


def interleaved(signals: Sequence[Sequence[int]], per_frame: Sequence[int]) -> list[int]:
    """All samples in the order of a signal file."""
    frames = len(signals[0]) // per_frame[0]
    return [int(s[f * n + k]) for f in range(frames) for s, n in zip(signals, per_frame) for k in range(n)]


def pack(form: str, samples: Sequence[int], unused: int = 0) -> bytes:
    """Samples as bytes of a format other than 8 and FLAC; the bits that a format leaves `unused` are all 0 or 1."""
    if form in ("16", "24", "32", "61"):
        order = "big" if form == "61" else "little"
        return b"".join(int(v).to_bytes(BITS[form] // 8, order, signed=True) for v in samples)
    if form == "80":  # offset binary
        return bytes(v + 128 for v in samples)
    if form == "160":
        return b"".join((v + 32768).to_bytes(2, "little") for v in samples)
    if form == "212":  # a pair in 24 bits, the high bits of both in the middle byte
        out = b""
        for i in range(0, len(samples), 2):
            a, b = (v & 0xFFF for v in (*samples[i : i + 2], 0)[:2])
            out += bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])[: 3 if i + 1 < len(samples) else 2]
        return out
    out = b""
    for i in range(0, len(samples), 3):
        group = [v & 0x3FF for v in samples[i : i + 3]]
        a, b, c = (*group, 0, 0)[:3]
        if form == "310":  # two words of 16 bits: 11 low bits hold a sample above an unused bit, 5 high ones half of c
            low = a << 1 | (c & 0x1F) << 11 | unused
            high = b << 1 | c >> 5 << 11 | unused
            word = low | high << 16
        else:  # 311: 30 low bits of 32
            word = a | b << 10 | c << 20 | (unused * 3) << 30
        out += word.to_bytes(4, "little")[: {1: 2, 2: 4, 3: 4}[len(group)]]
    return out


def differences(signals: Sequence[Sequence[int]], initial: Sequence[int], per_frame: Sequence[int]) -> bytes:
    """Format 8: each sample's difference to the one before it of its signal, the first one's to the initial value."""
    steps = [[int(b) - int(a) for a, b in zip([start, *s], s)] for s, start in zip(signals, initial)]
    return b"".join(v.to_bytes(1, "little", signed=True) for v in interleaved(steps, per_frame))


def write_flac(path: Path, form: str, signals: Sequence[Sequence[int]]) -> None:
    """All samples of each signal as a channel."""
    import numpy as np

    bits = BITS[form]
    kind, shift = ("int16", 16 - bits) if bits <= 16 else ("int32", 32 - bits)
    data = (np.array(signals).T << shift).astype(kind)
    subtype = "PCM_S8" if bits == 8 else f"PCM_{bits}"
    with soundfile.SoundFile(str(path), "w", 96000, data.shape[1], subtype=subtype, format="FLAC") as file:
        file.write(data)


def write_signals(
    path: Path, form: str, signals: Sequence[Sequence[int]], per_frame: Sequence[int], initial: Sequence[int], lead: int
) -> None:
    """One signal file with `lead` bytes before the first sample (of FLAC: samples of each signal)."""
    if form.startswith("5"):
        write_flac(path, form, [[0] * lead + [int(v) for v in s] for s in signals])
    elif form == "8":
        path.write_bytes(b"\xa5" * lead + differences(signals, initial, per_frame))
    else:
        path.write_bytes(b"\xa5" * lead + pack(form, interleaved(signals, per_frame)))


def write(
    folder: Path,
    name: str,
    files: Sequence[tuple[str, Sequence[Sequence[int]], Sequence[int]]],
    leads: Sequence[str],
    rate: float = 500,
    skew: Sequence[int] = (),
    lead: int = 0,
    gain: str = "200/mV",
    line: str = "{name} {signals} {rate:g} {frames}",
) -> None:
    """A record whose signal files have (format, samples of each signal, samples a frame of each); header and all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, names, skews = [], iter(leads), iter(skew)
    for number, (form, signals, per_frame) in enumerate(files):
        initial = [int(s[0]) - 1 if form == "8" else int(s[0]) for s in signals]
        write_signals(folder / f"{name}_{number}.dat", form, signals, per_frame, initial, lead)
        for values, n, start in zip(signals, per_frame, initial):
            word = f"{form}{f'x{n}' * (n > 1)}{f':{s}' if (s := next(skews, 0)) else ''}{f'+{lead}' if lead else ''}"
            total = sum(map(int, values)) % 65536
            lines.append(f"{name}_{number}.dat {word} {gain} {min(BITS[form], 16)} 0 {start} {total} 0 {next(names)}")
    frames = len(files[0][1][0]) // files[0][2][0]
    first = line.format(name=name, signals=len(lines), rate=rate, frames=frames)
    (folder / f"{name}.hea").write_text("\n".join([first, *lines]) + "\n")
