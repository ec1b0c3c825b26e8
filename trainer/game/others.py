"""Masks that are learned, but not of the ECG that they hide: each ECG gets that of another one of its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer import distributed
from trainer.game.losses import Gather

TRIES = 8


def of_others(masks: Tensor, patients: Tensor | None = None) -> Tensor:
    """Masks [n, B, ...] of this rank's share of a contrast batch -> for each ECG those of another one, [n, B, ...].

    The other is half of the contrast batch of all ranks further on, or the first after it of another patient (int64
    [B]; the eighth if all before are of the same), so that it does not depend on the number of ranks. The gradient
    returns to the ECG that a mask was made for, on its rank.
    """
    own = masks.transpose(0, 1)
    everyone = Gather.apply(own) if distributed.size() > 1 else own
    mine = distributed.rank() * len(own) + torch.arange(len(own), device=own.device)
    ids = torch.arange(len(everyone), device=own.device)
    if patients is not None:
        ids = torch.cat(distributed.gather_tensors(patients)) if distributed.size() > 1 else patients
    places = (mine[:, None] + (len(everyone) + 1) // 2 + torch.arange(TRIES, device=own.device)) % len(everyone)
    other = ids[places] != ids[mine][:, None]
    last = torch.where(other.any(1), other.int().argmax(1), TRIES - 1)
    return everyone[places.gather(1, last[:, None])[:, 0]].transpose(0, 1)
