"""Every encoder of the registry: initialised, rows alone, exported and loaded, under the masker; published sizes."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.handmade import SAMPLES, SCALING, make_run, small_encoder
from tests.support.players import PlainEngine
from trainer.export import export
from trainer.game.game import Game, Pair
from trainer.game.maskers.registry import build_masker
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.game.temperature import Temperature
from trainer.views import Key
from umbra.encoders.__main__ import main
from umbra.encoders.flops import PEAKS, forward_flops, peak, peak_of
from umbra.encoders.registry import ENCODERS, build_encoder
from umbra.encoders.vit import sine_cosine
from umbra.errors import UserError
from umbra.hub import initialise, load_encoder

SMALL = {
    "resnet18": {"width": 8, "embedding": 24},
    "resnet34": {"width": 8, "embedding": 24},
    "xresnet1d101": {"width": 8, "groups": 4},
    "vit_s": {"width": 24, "depth": 2, "heads": 2, "patch": 20},
}


def small(name: str, leads: int = 12, samples: int = SAMPLES) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder(name, leads, samples, SMALL[name])


@pytest.fixture
def nan_memory():
    """Memory that torch hands out uninitialised is NaN, so that a parameter that nothing sets shows."""
    torch.use_deterministic_algorithms(True)
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


PARTS = {name: lambda name=name: small(name) for name in ENCODERS} | {
    "xresnet, batch norm": lambda: build_encoder("xresnet1d101", 12, 250, {"width": 16, "norm": "batch"}),
    "masker": lambda: UNet(12, 2, 4, width=8),
    "paper's masker": lambda: build_masker("paper", 12, 2, 1, 16, 0, 5),
    "projector": lambda: Projector(8, 16, 4),
    "temperature": lambda: Temperature(0.2),
}


@pytest.mark.parametrize("part", PARTS)
def test_no_parameter_is_left_uninitialised(part, nan_memory):
    tensors = dict(PARTS[part]().named_parameters())
    assert tensors
    assert not [name for name, p in tensors.items() if not p.isfinite().all()]
    assert not [name for name, p in tensors.items() if p.ndim > 1 and p.std() == 0]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("samples", [SAMPLES, 250, 101])
def test_rows_are_treated_alone_at_any_length(name, samples):
    encoder, x = small(name, samples=samples), torch.randn(3, 12, samples)
    whole = encoder(x)
    assert whole.shape == (3, encoder.dim)
    assert torch.allclose(whole, torch.cat([encoder(row[None]) for row in x]), atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["resnet18", "xresnet1d101", "vit_s"])
@pytest.mark.parametrize("samples", [120, 999])
def test_an_encoder_takes_other_lengths_as_if_it_were_built_for_them(name, samples):
    encoder, x = small_encoder(name, seconds=5), torch.randn(2, 12, samples)
    other = encoder.resized(samples)
    assert (encoder.config.samples, other.config.samples) == (500, samples)
    assert torch.equal(other(x), encoder.backbone(encoder.scaling(x)).detach())
    alone = initialise(other.config)
    alone.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x), alone(x))


def test_a_resized_encoder_keeps_its_type_and_its_gradients(tmp_path):
    encoder = small_encoder("resnet18").double().requires_grad_()
    other = encoder.resized(np.int64(300))
    features = other(torch.zeros(1, 12, 300))
    assert (features.dtype, features.requires_grad) == (torch.float64, True)
    other.save_pretrained(tmp_path)
    assert load_encoder(tmp_path, check=True).config.samples == 300


@pytest.mark.parametrize("samples", [0, -5, 500.0, "500", None, True])
def test_a_length_is_a_whole_number_of_samples(samples):
    with pytest.raises(UserError, match=f"samples={samples!r} must be a whole number, at least 1"):
        small_encoder("resnet18").resized(samples)


def test_a_network_of_one_length_is_not_resized(monkeypatch):
    monkeypatch.setattr("umbra.encoders.vit.ViT.any_length", False)
    with pytest.raises(UserError, match="vit_s takes only ECGs of the length that it was built for, 5 s"):
        small_encoder("vit_s", seconds=5).resized(1000)


def test_the_positions_of_a_vit_are_those_of_time_at_any_length():
    encoder = small("vit_s", samples=240)
    table = sine_cosine(50, encoder.dim)
    for count in (1, 11, 12, 50):
        assert torch.equal(encoder._places(count), table[:count])


@pytest.mark.parametrize("name", ENCODERS)
def test_each_is_exported_and_loaded(name, tmp_path):
    record = {"name": name, "leads": [f"L{i}" for i in range(12)], "samples": SAMPLES, "rate": 100.0}
    run = make_run(tmp_path / "run", steps=[3], encoder=record | {"args": SMALL[name]})
    made, x = small(name), torch.randn(2, 12, SAMPLES)
    weights = {f"backbone.{k}": v for k, v in made.state_dict().items()}
    save_file(weights, run / "checkpoints" / "step-3" / "weights.safetensors")
    encoder = load_encoder(export(run))
    assert encoder.config.dim == made.dim
    torch.testing.assert_close(encoder(x), made.eval()(x / torch.tensor(SCALING["std_mv"])[:, None]))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_under_the_masker_its_update_raises_the_loss_and_the_encoders_lowers_it(name, seed):
    backbone, cfg = small(name), GameConfig(slope=5, masks=1)
    torch.manual_seed(seed)
    encoder = ContrastiveEncoder(backbone, Projector(backbone.dim, 16, 8)).double()
    masker = UNet(12, 1, 8, width=8).double()
    x, v = torch.randn(2, 6, 12, SAMPLES, dtype=torch.float64).cumsum(-1) / 8
    pair = Pair(x, v, Key(0, 0, torch.arange(6)))

    def updated(encoder_lr: float, masker_lr: float) -> float:
        """The loss after one update."""
        game = Game(PlainEngine(encoder, encoder_lr), PlainEngine(masker, masker_lr), cfg, 0.3)
        game.step([pair], 0)
        for module in (encoder, masker):
            assert all(p.grad.isfinite().all() for p in module.parameters())
            assert sum(p.grad.norm() for p in module.parameters()) > 0
            module.zero_grad()
        return game.evaluate(pair)["loss"].item()

    start = updated(0.0, 0.0)
    harder = updated(0.0, 1e-5)
    assert harder > start * (1 + 1e-12)
    assert updated(1e-5, 0.0) < harder * (1 - 1e-12)


def test_the_published_sizes():
    """xresnet1d101 less its head; ViT-S: 12 blocks of 12 d^2 + 13 d, patches and the last norm."""
    count = {name: sum(p.numel() for p in build_encoder(name, 12, 1000).parameters()) for name in ENCODERS}
    d = 384
    assert count["vit_s"] == 12 * (12 * d * d + 13 * d) + 12 * 25 * d + d + 2 * d
    assert count["xresnet1d101"] == xresnet_by_hand()
    assert build_encoder("xresnet1d101", 12, 250, {"pooling": "concat"}).dim == 512


def xresnet_by_hand() -> int:
    def conv(a, b, kernel):
        return a * b * kernel + 2 * b  # with its norm's scale and shift

    stem = conv(12, 32, 5) + conv(32, 32, 5) + conv(32, 64, 5)
    first = conv(64, 64, 1) + conv(64, 64, 5) + conv(64, 256, 1) + conv(64, 256, 1)
    return stem + first + 32 * (conv(256, 64, 1) + conv(64, 64, 5) + conv(64, 256, 1))


def test_an_xresnet_block_is_its_shortcut_at_first():
    encoder, x = small("xresnet1d101"), torch.randn(2, 12, SAMPLES)
    h = encoder.stem(x)
    for block in encoder.blocks:
        assert torch.equal(block(h), block.skip(h).relu())
        h = block(h)
    assert torch.equal(encoder(x), h.mean(-1))
    assert h.shape[-1] == SAMPLES // 32


def test_a_vit_knows_the_order_of_its_patches():
    encoder, x = small("vit_s", samples=240), torch.randn(2, 12, 240)
    swapped = torch.cat([x[..., 20:40], x[..., :20], x[..., 40:]], -1)
    assert not torch.allclose(encoder(x), encoder(swapped), atol=1e-3)
    table = sine_cosine(50, 8)
    assert table[3].tolist() == pytest.approx([f(3 / 10000 ** (i / 4)) for f in (math.sin, math.cos) for i in range(4)])


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("xresnet1d101", {"width": 20}, "width=20 must be a multiple of twice encoder.args.groups=8"),
        ("xresnet1d101", {"kernel": 4}, "kernel=4 must be odd"),
        ("xresnet1d101", {"pooling": "max"}, "pooling=max is unknown; use mean or concat"),
        ("xresnet1d101", {"layers": [1]}, "layers is not an argument of xresnet1d101"),
        ("vit_s", {"heads": 5}, "width=384 must be a multiple of twice encoder.args.heads=5"),
        ("vit_s", {"patch": 0}, "patch=0 must be >= 1"),
        ("vit_s", {"norm": "batch"}, "norm is not an argument of vit_s"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(name, args, said):
    with pytest.raises(UserError, match=said):
        build_encoder(name, 12, 1000, args)


def test_flops_are_those_of_the_layers():
    """A convolution by hand, and attention: two products of tokens x tokens x width."""
    net = torch.nn.Conv1d(12, 8, 5, padding=2)
    assert forward_flops(net, 12, 100) == 2 * 12 * 8 * 5 * 100
    tokens, d = 12, 24
    block = 2 * tokens * d * 12 * d + 2 * 2 * tokens * tokens * d
    assert forward_flops(small("vit_s", samples=240), 12, 240) == 2 * block + 2 * tokens * d * 12 * 20


def test_the_peak_of_an_unknown_device_is_no_number():
    assert math.isnan(peak(torch.device("cpu")))
    assert math.isnan(peak_of("NVIDIA A1000"))
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert all(peak_of(name) == value for name, value in PEAKS.items())


def test_the_command_lists_all(capsys):
    main(["samples=500", "leads=2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(ENCODERS)
    assert lines[0].startswith("forward pass of one ECG of 2 x 500")
    resnet = build_encoder("resnet18", 2, 500)
    assert f"{sum(p.numel() for p in resnet.parameters()):,}" in lines[2]
    assert f"{forward_flops(resnet, 2, 500) / 1e6:,.1f}" in lines[2]
