"""WFDB records written by hand for the tests of sharding: format 16, header lines as PhysioNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sharding.sources.protocol import Rejected
from umbra.schema import read_manifest

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def beats(seed: int, samples: int = 1000, rate: float = 100.0, leads: int = 12) -> np.ndarray:
    """An ECG-like int16 signal in microvolt, [samples, leads]: narrow peaks once a second, wander and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)[:, None] / rate
    peak = np.exp(-(((time + rng.uniform()) % 1.0 - 0.5) ** 2) / 0.0008)
    slow = 60 * np.sin(2 * np.pi * 0.3 * time + np.arange(leads))
    return np.rint(peak * rng.uniform(300, 1200, leads) + slow + rng.normal(0, 10, (samples, leads))).astype("<i2")


def write_record(
    folder: Path,
    name: str,
    digital: np.ndarray,
    rate: float = 100.0,
    leads: tuple[str, ...] = LEADS,
    comments: tuple[str, ...] = (),
    gain: str = "1000.0(0)/mV",
    record_line: str | None = None,
) -> None:
    """Writes `name.hea` and `name.dat`; `digital` [samples, leads] int16."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record_line or f"{name} {digital.shape[1]} {rate:g} {len(digital)}"]
    for column, lead in enumerate(leads):
        total = int(digital[:, column].astype(int).sum()) % 65536
        lines.append(f"{name}.dat 16 {gain} 16 0 {digital[0, column]} {total} 0 {lead}")
    lines += [f"# {comment}" for comment in comments]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.dat").write_bytes(digital.astype("<i2").tobytes())


def write_folder(folder: Path, patients: int, records_each: int = 1, **options) -> dict[str, np.ndarray]:
    """`patients` times `records_each` records with Age, Sex, Dx and Patient ID; returns the signals by record name."""
    signals = {}
    for patient in range(patients):
        for record in range(records_each):
            name = f"r{patient:04d}_{record}"
            comments = (
                f"Age: {20 + patient % 60}",
                f"Sex: {('Female', 'Male')[patient % 2]}",
                f"Dx: {('426783006', '164889003')[patient % 2]}",
                f"Patient ID: {1000 + patient}",
            )
            signals[name] = beats(100 * patient + record)
            write_record(folder, name, signals[name], comments=comments, **options)
    return signals


def reason_of(source, root: Path, record: str, options, wanted=("I", "II"), trims: bool = False) -> str:
    """Why a source rejects a record; nothing if it does not. Any other exception fails the test."""
    try:
        head = source.head(root, record, options)
        found = source.read(root, record, wanted, options).mv.shape[1]
        assert found <= head.samples if trims else found == head.samples
    except Rejected as error:
        return error.reason
    return ""


def arrays(output: Path) -> np.ndarray:
    """All windows of a data set in order, int16 `[n, leads, samples]`."""
    manifest = read_manifest(output)
    geometry, parts = manifest.geometry, []
    for shard in manifest.shards:
        raw = (output / shard.name).read_bytes()
        starts = [geometry.first + i * geometry.stride for i in range(shard.samples)]
        parts += [np.frombuffer(raw, "<i2", geometry.leads * geometry.samples, s) for s in starts]
    return np.stack(parts).reshape(-1, geometry.leads, geometry.samples)
