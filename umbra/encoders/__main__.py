"""The encoders with their sizes: `python -m umbra.encoders [leads=12] [samples=1000]`."""

from __future__ import annotations

from dataclasses import dataclass

from umbra.config import check_fields, command, load, setting
from umbra.encoders.flops import forward_flops
from umbra.encoders.registry import ENCODERS, build_encoder


@dataclass
class SizeConfig:
    """The input of the encoders."""

    leads: int = setting(12, ">= 1 and <= 1000")
    """Leads of an ECG."""
    samples: int = setting(1000, ">= 1 and <= 1000000")
    """Samples per lead."""

    def check(self) -> None:
        """Raises `UserError` for an invalid value."""
        check_fields(self)


def main(argv: list[str]) -> None:
    cfg = load(SizeConfig, None, argv)
    cfg.check()
    print(f"forward pass of one ECG of {cfg.leads} x {cfg.samples}; a training step takes 3 times that per view")
    print(f"{'encoder':<14}{'parameters':>14}{'features':>10}{'MFLOP':>12}")
    for name in ENCODERS:
        encoder = build_encoder(name, cfg.leads, cfg.samples)
        count = sum(p.numel() for p in encoder.parameters())
        mflop = forward_flops(encoder, cfg.leads, cfg.samples) / 1e6
        print(f"{name:<14}{count:>14,}{encoder.dim:>10}{mflop:>12,.1f}")


if __name__ == "__main__":
    command(main)
