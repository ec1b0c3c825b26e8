"""What a network computes, counted by torch, and what a device could: the two sides of MFU (Chowdhery et al. 2022)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 operations per second of a device, by how its name begins; from the makers' data sheets.
PEAKS = {
    "NVIDIA B200": 2.25e15,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A40": 150e12,
    "NVIDIA L4": 121e12,
}


def forward_flops(network: nn.Module, leads: int, samples: int) -> int:
    """Operations (a multiplication with its addition counts two) of one ECG's way through; nothing is computed."""
    bare = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        bare(torch.empty(1, leads, samples, device="meta"))
    return int(counter.get_total_flops())


def training_flops(encoder: nn.Module, masker: nn.Module | None, views: int, leads: int, samples: int) -> int:
    """Operations of one ECG's part in a step: `views` through the encoder, one through the masker, and back.

    The backward counts twice the forward; what is computed a second time (chunks) does not count.
    """
    once = views * forward_flops(encoder, leads, samples)
    if masker is not None:
        once += forward_flops(masker, leads, samples)
    return 3 * once


def peak(device: torch.device) -> float:
    """Dense bf16 operations per second of a device; NaN where it is not known (any CPU)."""
    if device.type != "cuda":
        return math.nan
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    return next(
        (p for known, p in PEAKS.items() if name == known or name.startswith((f"{known} ", f"{known}-"))), math.nan
    )
