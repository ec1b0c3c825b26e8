"""Steps that were measured on one device: the table that plans are made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`ecg_per_second` of an adversarial step of `batch` ECGs, 12 leads x `samples`, on one device.

    `gflop`: of a step per ECG. `floor_ms`: the shortest step that was seen, with few ECGs (0: not measured).
    `mib`: peak memory of the batch besides weights and optimiser (0: not measured).
    """

    device: str
    encoder: str
    samples: int
    batch: int
    ecg_per_second: float
    gflop: float
    source: str
    floor_ms: float = 0.0
    mib: float = 0.0


GPUS = "docs/gpus.md (2026-11-27, commit 42d8aac, bf16)"
CPUS = "docs/results/step.md (2026-11-27, commit cfb9e4d, fp32)"
H100, EPYC = "NVIDIA H100", "two cores of an AMD EPYC"
FIGURES = (
    Figure(H100, "resnet18", 2500, 256, 6936, 5.25, GPUS, 37.5, 4284),
    Figure(H100, "xresnet1d101", 2500, 256, 2294, 4.88, GPUS, 0.0, 14793),
    Figure(H100, "vit_s", 2500, 256, 3548, 26.9, GPUS, 0.0, 8635),
    Figure(EPYC, "resnet18", 1000, 16, 60.2, 2.14, CPUS),
    Figure(EPYC, "resnet18", 2500, 16, 25.8, 5.26, CPUS),
    Figure(EPYC, "vit_s", 1000, 16, 11.1, 10.3, CPUS),
    Figure(EPYC, "vit_s", 2500, 16, 4.6, 25.7, CPUS),
)
DEVICES = tuple(dict.fromkeys(figure.device for figure in FIGURES))


def figure_for(device: str, encoder: str, samples: int) -> tuple[Figure, bool]:
    """The figure nearest to what is planned, and whether it is of the same encoder."""
    there = [f for f in FIGURES if f.device == device]
    same = [f for f in there if f.encoder == encoder]
    return min(same or there, key=lambda f: abs(f.samples - samples)), bool(same)
