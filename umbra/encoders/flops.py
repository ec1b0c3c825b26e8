"""FLOPs of a network, counted by torch, and peak FLOP/s of a device, for model FLOPs utilisation (MFU, Chowdhery et al.
2022)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 FLOP/s of devices by the start of their name, from the vendors' data sheets.
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
    """FLOPs of a forward pass of one ECG (a multiply-add counts as two), counted on the meta device."""
    bare = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        bare(torch.empty(1, leads, samples, device="meta"))
    return int(counter.get_total_flops())


def peak(device: torch.device) -> float:
    """Dense bf16 FLOP/s of a device; NaN if unknown (any CPU)."""
    if device.type != "cuda":
        return math.nan
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    return next(
        (p for known, p in PEAKS.items() if name == known or name.startswith((f"{known} ", f"{known}-"))), math.nan
    )
