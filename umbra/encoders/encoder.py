"""The exported encoder: scaling and backbone in one module, from millivolts to features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from umbra.encoders import withheld
from umbra.encoders.backbone import Backbone
from umbra.encoders.config import SCALINGS, EncoderConfig
from umbra.encoders.embed import embed
from umbra.encoders.pretrained import Pretrained
from umbra.errors import UserError


class Scaling(nn.Module):
    """mV [B, leads, samples] -> standardised, fp32.

    `mode`: `fixed` (mean and standard deviation per lead, in mV, of the training data) or `record` (each record's own).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_mv: Sequence[float], std_mv: Sequence[float], mode: str = "fixed") -> None:
        super().__init__()
        if mode not in SCALINGS:
            raise UserError(f"scaling={mode} is unknown; use fixed or record")
        self.mode = mode
        self.register_buffer("mean", torch.tensor(mean_mv, dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.tensor(std_mv, dtype=torch.float32)[:, None].clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.mode == "fixed":
            return (x - self.mean) / self.std
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / (x - mean).square().mean(-1, keepdim=True).sqrt().clamp_min(1e-3)


class Encoder(Pretrained):
    """mV [B, leads, samples] -> features [B, dim]: the scaling of its `config`, then the backbone.

    Called, it is strict: a tensor of real numbers of that shape, or one ECG [leads, samples] -> [dim]. Raises
    `UserError` for another shape, `TypeError` for what is no tensor. `embed` takes ECGs as they come.

    In eval mode, as `load_encoder` gives it, features carry no gradients, unless the input requires them or
    `encoder.requires_grad_()` was called; in training mode (`encoder.train()`) they do. An optimizer that steps over
    weights which therefore got none is warned of. `from_pretrained`, `save_pretrained` and `push_to_hub`: see
    `Pretrained`.
    """

    gradients = False  # in eval mode

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__()
        scaling = config.scaling
        self.config = replace(config, dim=backbone.dim)
        self.scaling = Scaling(scaling["mean_mv"], scaling["std_mv"], scaling["mode"])
        self.backbone = backbone
        self.dim = backbone.dim

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.backbone, x)

    def tokens(self, x: Tensor) -> Tensor:
        """mV [B, leads, samples] -> the features before pooling [B, tokens, features], in the order of time."""
        return self._run(self.backbone.tokens, x)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of torch; in addition, features carry gradients in eval mode too (False: only in training mode)."""
        self.gradients = requires_grad
        return super().requires_grad_(requires_grad)

    def resized(self, samples: int) -> Self:
        """The same encoder for windows of `samples` samples, with weights of its own, on the same device, in its type.

        Raises `UserError` if `samples` is no whole number from 1 on, or its network takes no other length.
        """
        if isinstance(samples, bool) or not isinstance(samples, Integral) or samples < 1:
            raise UserError(f"samples={samples!r} must be a whole number, at least 1")
        if samples != self.config.samples and not self.backbone.any_length:
            name, seconds = self.config.architecture["name"], self.config.samples / self.config.rate
            raise UserError(f"{name} takes only ECGs of the length that it was built for, {seconds:g} s")
        other = type(self).of(replace(self.config, samples=int(samples)))
        own = next(self.parameters())
        other.to(own.device, own.dtype).load_state_dict(self.state_dict())
        other.gradients = self.gradients
        return other.train(self.training)

    def embed(
        self,
        ecg: Any,
        *,
        rate: float | None = None,
        leads: Sequence[str] | None = None,
        units: str | float | None = None,
        pool: str | None = "mean",
        device: str | torch.device | None = None,
        batch: int = 64,
        progress: bool = False,
        nan: str = "refuse",
        return_info: bool = False,
        source: Mapping[str, Any] | None = None,
    ) -> Any:
        """ECGs as they come -> features, by the steps that make a shard: resampled, leads ordered and limb leads
        derived from I and II, cut into windows of the encoder's length, rounded to microvolts.

        `ecg`: NumPy or torch, one ECG [leads, samples] -> [dim], a batch [B, leads, samples] -> [B, dim], a list of
        ECGs of any lengths -> [B, dim], or the path of a recording (or a list of paths; `pip install 'umbra[shard]'`):
        a WFDB record, or a file that `python -m sharding` reads. From 1 s to days; below a window, zeros are added.

        `rate` in Hz; `leads`: the names of the signals in their order (None: those of the encoder), in any case and by
        any alias; `units`: mV (also None), uV, nV, V, or millivolts per unit. A file that states these itself takes
        none of them. Missing leads are filled with zeros; a warning says which, and whether the amplitudes are
        implausible.

        `pool`: `mean` over the windows; None gives each window, [..., windows, dim]; `tokens` gives the features
        before the network's pooling, in time, [..., windows x tokens, features]. These two give a list for a list.
        `device` moves the encoder there. `batch`: windows at a time. `nan`: `refuse` values that are not finite, or
        `fill` them by interpolation. `source`: further keys `source.array.*` of `python -m sharding` for files of bare
        arrays, such as {"leads_last": True}. `return_info=True` gives (features, `EmbedInfo` of each ECG).

        NumPy (or a path) gives NumPy, torch gives torch, without gradients. Raises `UserError`, a `ValueError`, which
        names the argument.
        """
        return embed(
            self,
            ecg,
            rate=rate,
            leads=leads,
            units=units,
            pool=pool,
            device=device,
            batch=batch,
            progress=progress,
            nan=nan,
            return_info=return_info,
            source=source,
        )

    def _run(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self._check(x)
        wanted = self.training or self.gradients or x.requires_grad
        if torch.is_grad_enabled() and not wanted:
            withheld.note(self)
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            scaled = self.scaling(x if x.ndim == 3 else x[None])
            features = network(scaled.to(next(self.backbone.parameters()).dtype))
        return features if x.ndim == 3 else features[0]

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"the encoder takes a torch tensor, not {type(x).__name__}: give torch.as_tensor(x)")
        if x.is_complex():
            raise TypeError(f"the encoder takes a tensor of real numbers, not of {x.dtype}")
        shape = (len(self.config.leads), self.config.samples)
        if x.ndim not in (2, 3) or tuple(x.shape[-2:]) != shape:
            raise UserError(
                f"the encoder takes mV [batch, {shape[0]} leads, {shape[1]} samples at {self.config.rate:g} Hz], "
                f"not {list(x.shape)}: order the leads as encoder.config.leads, resample, and cut windows of that "
                "length"
            )
