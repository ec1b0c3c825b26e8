"""The bytes and operators of a step do not grow; the counter counts what it says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.traffic import Traffic, TrafficConfig, as_on_gpu, make_step, measure_compiled, size
from tests.support.compiler import compiler_or_skip
from umbra.encoders.resnet import ResNet

CONVOLUTIONS = ("convolution", "convolution_backward")


def test_a_step_moves_few_bytes_besides_its_convolutions():
    """Bounds a little above what was counted: all bytes over those of the convolutions, and the calls of operators."""
    args = {"width": 16, "embedding": 16}
    play, _ = make_step(TrafficConfig(encoder="resnet18", args=args, batch=8, samples=1000))
    with as_on_gpu(), Traffic() as seen:
        play()
    convolutions = sum(seen.bytes[name] for name in CONVOLUTIONS)
    assert sum(seen.bytes.values()) <= 4.52 * convolutions
    assert sum(seen.calls.values()) <= 366


def test_reads_and_writes_are_counted_once_and_views_are_free():
    x = torch.zeros(10, 4)
    with Traffic() as seen:
        y = x.t()[:2].unsqueeze(0)
        F.relu(y)
        x.add_(1)
        x.double()
        torch.empty(1000)
        x + torch.zeros(1).expand(10, 4)
    assert seen.calls == {"relu": 1, "add_": 1, "_to_copy": 1, "zeros": 1, "add": 1}
    assert seen.bytes == {"relu": 2 * 80, "add_": 2 * 160, "_to_copy": 160 + 320, "zeros": 4, "add": 160 + 4 + 160}
    assert seen.types == {"float64": 320, "float32": sum(seen.bytes.values()) - 320}
    assert size(torch.zeros(3, 1).expand(3, 100)) == 12


def test_autocast_widens_torchs_group_norm_as_gpus_do():
    x = torch.ones(1, 4, 5).bfloat16()
    with as_on_gpu(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.group_norm(x, 2).dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert F.group_norm(x, 2).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.group_norm(x, 2).dtype == torch.bfloat16


class Whole(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.encoder = ResNet(4, 2200, width=32, layers=(blocks,), embedding=4)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_compiled_block_moves_30_times_its_activations():
    """Forward, of each convolution and norm: the convolution reads and writes, statistics read, the result is read and
    written, 10 in all, and 1 for what is added. Backward: the residual sum, with the sums of the norm before it, 5;
    those of the other norm 2; of each norm the gradient 3; of each convolution 3."""
    compiler_or_skip()
    x, counted = torch.randn(8, 4, 2200), []
    activation = 8 * 32 * 550 * 2
    for blocks in (2, 3):
        network = Whole(blocks)

        def play(network=network):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = network.whole(x)
            out.float().square().sum().backward()

        with as_on_gpu():
            counted.append(measure_compiled(play, [network])["bytes"])
    assert 30 <= (counted[1] - counted[0]) / activation <= 31  # weights and tables of channels besides
