"""Fewer leads and shorter strips: of each record an encoder sees what another recorder would have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from umbra.encoders.config import EncoderConfig
from umbra.encoders.encoder import Encoder, Scaling
from umbra.errors import UserError, near_miss
from umbra.leads import canonical


class Recorded(Scaling):
    """mV [B, leads, samples] -> standardised [B, leads, `samples`], the leads that are not `kept` [leads, 1] zero.

    So are leads that the view `lead_drop` hides in pre-training; `Encoder.embed` fills missing leads with 0 mV.
    """

    kept: Tensor
    length: Tensor

    def __init__(self, config: EncoderConfig, kept: Sequence[bool], samples: int) -> None:
        super().__init__(config.scaling["mean_mv"], config.scaling["std_mv"], config.scaling["mode"])
        self.samples = samples
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.float32)[:, None])
        self.register_buffer("length", torch.tensor(samples))  # so that features of another length have another hash

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., : self.samples]) * self.kept


def as_recorded(encoder: Encoder, leads: Sequence[str], seconds: float) -> Encoder:
    """The encoder, which now sees only these `leads` (none: all) of only the first `seconds` (0: all) of its windows.

    Raises `UserError` for an unknown lead, for more seconds than there are, or if its network takes no other length.
    """
    config = encoder.config
    if not leads and not seconds:
        return encoder
    names = [canonical(lead) or lead for lead in leads]
    for name, given in zip(names, leads):
        if name not in config.leads:
            raise UserError(f"leads has '{given}', which the encoder does not know{near_miss(name, config.leads)}")
    samples, whole = round(seconds * config.rate) if seconds else config.samples, config.samples / config.rate
    if samples < 1:
        raise UserError(f"seconds={seconds:g} is less than a sample at {config.rate:g} Hz: give more, or 0 for all")
    if samples > config.samples:
        raise UserError(f"seconds={seconds:g} is more than the records have, {whole:g} s: leave it out")
    if samples < config.samples and not encoder.backbone.any_length:
        name = config.architecture["name"]
        raise UserError(f"seconds={seconds:g}: {name} takes only ECGs of the length that it was built for, {whole:g} s")
    kept = [lead in names or not names for lead in config.leads]
    encoder.scaling = Recorded(config, kept, samples).to(next(encoder.parameters()).device)
    return encoder
