"""The encoder for other runtimes, one file with the scaling inside: ONNX and torch's `.pt2`, checked after writing."""

from __future__ import annotations

import copy
import importlib.util
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from umbra.encoders.encoder import Encoder
from umbra.errors import UserError, near_miss

FILES = {"onnx": "encoder.onnx", "pt2": "encoder.pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4
SHORTEST = 64  # samples that a network of any length takes

# Each runs in a process of its own, with nothing of this package: argv are the model and the cases.
RUN = {
    "onnx": "import onnxruntime; f = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']); "
    "run = lambda x: f.run(None, {'ecg': x})[0]",
    "pt2": "import torch; f = torch.export.load(sys.argv[1]).module(); run = lambda x: f(torch.from_numpy(x)).numpy()",
}
CHECK = """import sys, numpy; {run}
cases = numpy.load(sys.argv[2])
print(numpy.max([abs(run(cases['x' + n]) - cases['y' + n]).max() / max(1.0, abs(cases['y' + n]).max())
    for n in map(str, range(len(cases.files) // 2))]))"""


def check_formats(formats: Sequence[str]) -> None:
    """Raises `UserError` for an unknown format, and for one whose packages are missing."""
    for name in formats:
        if name not in FILES:
            raise UserError(f"formats: '{name}' is unknown{near_miss(name, FILES)}")
    missing = [name for name in PACKAGES if "onnx" in formats and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"formats=[onnx] needs {missing[0]}: pip install 'umbra[onnx]'")


def write(encoder: Encoder, folder: Path, formats: Collection[str]) -> None:
    """Writes the `FILES` of `formats` into `folder` and checks each in a fresh process, at batches and, where the
    network allows, lengths that were not exported.

    mV `ecg` [batch, leads, samples] -> `features` [batch, dim]. Raises `UserError` if one differs from the encoder.
    """
    if not formats:
        return
    program, cases = exported(encoder), _cases(encoder)
    for name in formats:
        path = folder / FILES[name]
        (_write_onnx if name == "onnx" else _write_pt2)(program, encoder, path)
        check(name, path, cases)


class Portable(nn.Module):
    """Scaling and backbone of an encoder, written so that batch and length stay free in `torch.export`; its features
    carry no gradients."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.scaling, self.backbone = encoder.scaling, _free(copy.deepcopy(encoder.backbone)).requires_grad_(False)

    def forward(self, ecg: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.scaling(ecg))
        return features


def exported(encoder: Encoder) -> ExportedProgram:
    """The encoder's graph on the CPU in eval mode: any batch and, where the network allows, any length."""
    ecg = torch.zeros(2, len(encoder.config.leads), encoder.config.samples)
    free = {0: Dim("batch", max=1 << 20)}
    if encoder.backbone.any_length:
        free[2] = Dim("samples", min=min(SHORTEST, encoder.config.samples), max=1 << 30)
    with torch.no_grad():
        return torch.export.export(
            Portable(encoder).eval(),
            (ecg,),
            dynamic_shapes={"ecg": free},
            prefer_deferred_runtime_asserts_over_guards=True,  # else a ViT's number of patches fixes the length
        )


def _free(network: nn.Module) -> nn.Module:
    """`network` with pooling layers whose graph is not tied to one length, and which compute the same."""
    for name, child in network.named_children():
        if isinstance(child, nn.MaxPool1d):
            setattr(network, name, _MaxPool(child))
        elif isinstance(child, nn.AvgPool1d | nn.AvgPool2d) and child.ceil_mode:
            setattr(network, name, _PairMean(child))
        else:
            _free(child)
    return network


class _MaxPool(nn.Module):
    """Max pooling in two dimensions, of which the first is 1: in one, `torch.export` fixes the length."""

    def __init__(self, pool: nn.MaxPool1d) -> None:
        super().__init__()
        sizes: tuple[Any, ...] = pool.kernel_size, pool.stride, pool.padding
        self.kernel, self.stride, self.padding = ((still, size) for still, size in zip((1, 1, 0), sizes))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.unsqueeze(2), self.kernel, self.stride, self.padding).squeeze(2)


class _PairMean(nn.Module):
    """Mean of neighbours, the last of an odd number alone: a pool of 2 with `ceil_mode` that does not count padding."""

    def __init__(self, pool: nn.AvgPool1d | nn.AvgPool2d) -> None:
        super().__init__()
        two, no = ((2,), (0,)) if isinstance(pool, nn.AvgPool1d) else ((1, 2), 0)
        assert (pool.kernel_size, pool.stride, pool.padding, pool.count_include_pad) == (two, two, no, False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(torch.cat([x, x[..., -1:]], -1), (1, 2))


def _about(encoder: Encoder) -> dict[str, str]:
    """What a user of the file alone must know."""
    config = encoder.config
    values = {"leads": ",".join(config.leads), "rate": f"{config.rate:g}", "samples": str(config.samples)}
    return values | {"units": config.units, "dim": str(encoder.dim)}


def _write_onnx(program: ExportedProgram, encoder: Encoder, path: Path) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["ecg"], output_names=["features"], verbose=False
            )
    finally:
        logger.setLevel(level)
    assert made is not None
    made.model.metadata_props.update(_about(encoder))
    made.save(path, external_data=False)


def _write_pt2(program: ExportedProgram, encoder: Encoder, path: Path) -> None:
    torch.export.save(program, path, extra_files={"config.json": encoder.config.to_json()})


def _cases(encoder: Encoder) -> dict[str, np.ndarray]:
    """Inputs `x0`, `x1`, ... in mV and their features `y0`, ...; none of an exported shape."""
    leads, samples = len(encoder.config.leads), encoder.config.samples
    shapes = [(1, samples), (3, samples), (5, samples)]
    if encoder.backbone.any_length:
        shapes += [(1, max(samples // 2 + 1, SHORTEST)), (4, samples * 3 // 2 + 3)]
    generator = torch.Generator().manual_seed(1)
    cases: dict[str, np.ndarray] = {}
    for number, (batch, length) in enumerate(shapes):
        ecg = torch.randn(batch, leads, length, generator=generator) * encoder.scaling.std + encoder.scaling.mean
        with torch.no_grad():
            features = encoder.backbone(encoder.scaling(ecg))
        cases |= {f"x{number}": ecg.numpy(), f"y{number}": features.numpy()}
    return cases


def check(name: str, path: Path, cases: dict[str, np.ndarray]) -> None:
    """Raises `UserError` unless the file gives the features of the cases, in a fresh process without this package."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "cases.npz", allow_pickle=False, **cases)
        words = [sys.executable, "-c", CHECK.format(run=RUN[name]), str(path.resolve()), f"{folder}/cases.npz"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{FILES[name]} was written, but does not run: {reason}; leave {name} out of formats=")
    apart = float(done.stdout.split()[-1])
    if not apart <= TOLERANCE:
        raise UserError(f"{FILES[name]} differs from the encoder by {apart:.2g}: leave {name} out of formats=")
