"""Layers between signals and features: any layout in memory, the type that they are given, statistics in fp32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.traffic import Traffic, as_on_gpu
from tests.support.devices import on_each
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet, repeated
from umbra.encoders import layout
from umbra.encoders.layout import Conv, GroupNorm, LayerNorm, laid_out
from umbra.encoders.registry import build_encoder
from umbra.encoders.resnet import ResNet
from umbra.encoders.xresnet import XResNet

NETWORKS = {
    "resnet": lambda: ResNet(4, 200, width=16, layers=(1, 1), embedding=8, groups=2),
    "resnet, batch norm": lambda: ResNet(4, 200, width=16, layers=(1, 1), embedding=8, norm="batch"),
    "resnet, gelu": lambda: ResNet(4, 200, width=16, layers=(1, 1), embedding=8, activation="gelu"),
    "xresnet": lambda: XResNet(4, 200, layers=(1, 1), width=16, groups=2, pooling="concat"),
    "vit": lambda: build_encoder("vit_s", 4, 200, {"width": 128, "depth": 2, "heads": 2, "patch": 10}),
    "unet": lambda: UNet(4, 2, 4, width=32, depth=2),
    "paper": lambda: PaperUNet(4, 2, width=16),
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture
def stored(monkeypatch):
    return lambda chosen: monkeypatch.setattr(layout, "memory_format", lambda device: chosen)


def perturbed(name: str) -> nn.Module:
    """A network in which no gradient hides behind a weight that begins at zero."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def result(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output and all gradients in one row."""
    given = x.clone().requires_grad_()
    out = network(given)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)).sum().backward()
    found = torch.cat([out.detach().flatten(), given.grad.flatten(), *(p.grad.flatten() for p in network.parameters())])
    network.zero_grad()
    return found


@pytest.mark.parametrize("device", on_each())
@pytest.mark.parametrize("name", NETWORKS)
def test_both_layouts_give_the_same_outputs_and_gradients(name, device, stored):
    network, x, found = perturbed(name).double().to(device), torch.randn(3, 4, 199).double().to(device), []
    for chosen in LAYOUTS:
        stored(chosen)
        found.append(result(network, x if name != "vit" else F.pad(x, (0, 1))))
    assert found[0].norm() > 1
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet, batch norm", "xresnet", "unet", "paper"])
def test_activations_keep_the_layout_that_they_begin_with(name, stored):
    network, seen = NETWORKS[name](), []
    for module in network.modules():
        if isinstance(module, Conv):
            module.register_forward_hook(lambda module, given, out: seen.append(out))
    for chosen in LAYOUTS:
        stored(chosen)
        network(torch.randn(2, 4, 200))
        kept = [out.is_contiguous(memory_format=chosen) for out in seen if min(out.shape[1], out.shape[3]) > 1]
        assert len(kept) > 3
        assert all(kept)
        seen.clear()


@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_those_of_torch(fused, monkeypatch):
    monkeypatch.setattr(layout, "_fuses", lambda: fused)
    x = (torch.randn(3, 8, 1, 11, dtype=torch.float64) + 2).contiguous(memory_format=torch.channels_last)
    for norm, right, given in (
        (GroupNorm(2, 8), nn.GroupNorm(2, 8), x),
        (LayerNorm(8), nn.LayerNorm(8), x[:, :, 0].transpose(1, 2)),
    ):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        right.load_state_dict(norm.state_dict())
        torch.testing.assert_close(result(norm.double(), given), result(right.double(), given))
        assert torch.autograd.gradcheck(norm, given.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_norms_round_their_output_only(fused, monkeypatch):
    """Of a mean 20 times the standard deviation, which statistics in bf16 would lose."""
    monkeypatch.setattr(layout, "_fuses", lambda: fused)
    x = (torch.randn(2, 8, 1, 500) + 20).bfloat16()
    for norm, given in ((GroupNorm(2, 8), x), (LayerNorm(8), x[:, :, 0].transpose(1, 2))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = norm(given)
        assert found.dtype == torch.bfloat16
        right = norm.double()(given.double())
        assert (found - right).abs().max() <= 2**-8 * right.abs().max()


def widest(network: nn.Module, x: torch.Tensor) -> dict[torch.dtype, int]:
    """Elements of the largest tensor of each type that a pass and its backward write, under the autocast of GPUs."""
    with as_on_gpu(), Traffic() as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(x)
        out.float().mean().backward()
    return seen.largest


@pytest.mark.parametrize("name", NETWORKS)
def test_no_activation_is_fp32_under_bf16_autocast(name):
    torch.manual_seed(0)
    network, x = NETWORKS[name](), torch.randn(64, 4, 200)
    found = widest(network, x)
    signals_and_weights = max(x.numel(), *(p.numel() for p in network.parameters()))
    assert found[torch.float32] <= signals_and_weights < found[torch.bfloat16]


def test_torchs_own_group_norm_would_be_seen():
    network = ResNet(4, 200, width=16, layers=(1, 1), embedding=8, groups=2)
    network.stem[1] = nn.GroupNorm(2, 16)
    found = widest(network, torch.randn(64, 4, 200))
    assert found[torch.float32] >= 64 * 16 * 100


def test_attention_copies_only_to_join_the_gradients():
    network, x = NETWORKS["vit"](), torch.randn(4, 4, 200)
    with as_on_gpu(), Traffic() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        network(x).float().sum().backward()
    assert seen.calls["clone"] == seen.calls["copy_"] == seen.calls["contiguous"] == 0
    assert seen.calls["stack"] == len(network.blocks)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("chosen", LAYOUTS)
def test_repeated_is_repeat_interleave(times, chosen):
    for length in (1, 7, 313):
        h = torch.randn(2, 8, 1, length).contiguous(memory_format=chosen)
        assert torch.equal(repeated(h, times), h.repeat_interleave(times, -1))


@pytest.mark.parametrize("x", [torch.randn(2, 3, 9), torch.randn(2, 3, 9)[:, :, ::2]])
def test_a_convolution_of_images_of_height_one_is_that_of_signals(x):
    conv = Conv(3, 4, 3, stride=2, padding=1)
    assert torch.allclose(conv(laid_out(x)).squeeze(2), conv(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "xresnet", "vit"])
def test_encoders_are_exported_as_graphs_for_any_batch(name):
    network, x = perturbed(name).eval(), torch.randn(3, 4, 200)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    made = torch.export.export(network, (x,), dynamic_shapes=shapes, strict=False).module()
    other = torch.randn(5, 4, 200)
    torch.testing.assert_close(made(other), network(other), rtol=1e-5, atol=1e-5)
