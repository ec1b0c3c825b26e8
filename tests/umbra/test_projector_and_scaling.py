import pytest
import torch
from torch import nn

from trainer.game.maskers.registry import build_masker
from trainer.game.maskers.unet import UNet
from trainer.game.projector import Projector
from umbra.encoders.encoder import Encoder, EncoderConfig, Scaling
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError, building


def test_resnet18_has_the_papers_size():
    assert sum(p.numel() for p in build_encoder("resnet18", 12, 1000).parameters()) == 4_111_488


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_encoders_map_ecgs_to_features(name, norm):
    encoder = build_encoder(name, 12, 250, {"width": 8, "embedding": 24, "norm": norm})
    assert encoder(torch.randn(3, 12, 250)).shape == (3, encoder.dim) == (3, 24)


@pytest.mark.parametrize(("stride", "length"), [(1, 100), (4, 100), (7, 101), (40, 1000)])
def test_mask_logits_are_constant_over_a_cell(stride, length):
    torch.manual_seed(0)
    logits = UNet(12, 2, stride, width=8)(torch.randn(2, 12, length))
    assert logits.shape == (2, 2, length)
    cells = logits[..., : length // stride * stride].unflatten(-1, (-1, stride))
    assert torch.equal(cells, cells[..., :1].expand_as(cells))
    assert logits[0, 0].unique().numel() > 1


def test_a_mask_cell_looks_at_its_own_place():
    torch.manual_seed(0)
    masker, x = UNet(1, 1, 10, width=8), torch.randn(1, 1, 400, requires_grad=True)
    masker(x)[0, 0, 205].backward()
    looked = x.grad.abs()[0, 0].view(40, 10).sum(1)
    assert 19 <= int(looked.argmax()) <= 21


def test_scaling():
    x = torch.randn(4, 2, 50) * 3 + 1
    fixed = Scaling([1.0, 2.0], [0.5, 4.0])(x)
    assert torch.allclose(fixed[:, 1], (x[:, 1] - 2) / 4)
    record = Scaling([0, 0], [1, 1], "record")(x)
    assert torch.allclose(record.mean(-1), torch.zeros(4, 2), atol=1e-5)
    assert torch.allclose(record.std(-1, correction=0), torch.ones(4, 2), atol=1e-5)
    with pytest.raises(UserError, match="scaling=other"):
        Scaling([0], [1], "other")


def test_the_scaling_is_part_of_the_encoder():
    backbone = build_encoder("resnet18", 2, 100, {"width": 8})
    x = torch.randn(2, 2, 100)
    scaling = {"mode": "fixed", "mean_mv": [1, 1], "std_mv": [2, 2]}
    config = EncoderConfig({"name": "resnet18", "args": {"width": 8}}, backbone.dim, 100.0, ["I", "II"], 100, scaling)
    assert torch.allclose(Encoder(backbone, config)(x), backbone((x - 1) / 2), atol=1e-5)


def test_projector_is_two_layers():
    assert [type(m) for m in Projector(8, 16, 4).net] == [nn.Linear, nn.ReLU, nn.Linear]


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_encoder("resnet19", 12, 1000)
    with pytest.raises(UserError, match="width=12 is not a multiple"):
        build_encoder("resnet18", 12, 1000, {"width": 12})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"width": "abc"}, "encoder.args.width=abc must be of type int"),
        ({"width": True}, "encoder.args.width=True must be of type int"),
        ({"groups": 0}, "encoder.args.groups=0 must be >= 1"),
        ({"width": 0}, "encoder.args.width=0 must be >= 1"),
        ({"embedding": 0}, "encoder.args.embedding=0 must be >= 1"),
        ({"layers": [1, 1, 1, 1]}, "encoder.args.layers is not an argument of resnet18"),
        ({"leads": 3}, "encoder.args.leads is not an argument of resnet18"),
        ({"embedding": 10**15}, "the encoder cannot be built with encoder.name=resnet18, encoder.args."),
    ],
)
def test_arguments_of_the_wrong_kind_are_one_line(args, said):
    with pytest.raises(UserError, match=said) as error:
        build_encoder("resnet18", 12, 100, args)
    assert "\n" not in str(error.value)


def test_building_leaves_other_errors_alone():
    with pytest.raises(KeyError), building("masker", {}):
        raise KeyError("ours")
    with pytest.raises(UserError, match=r"^the first$"), building("masker", {}):
        raise UserError("the first")


def test_the_papers_masker_has_the_published_size_without_the_parts_its_forward_never_uses():
    """247,077,697 parameters with one mask, of which a fifth level and the gates' linear maps are never used."""

    def conv(i, o, k=5):
        return i * o * k + o + 2 * o

    def gate(c):
        return c * (c // 8) + c // 8 + (c // 8) * c + c

    widths = [512, 1024, 1536, 2048]
    down = sum(conv(i, o) + 2 * conv(o, o) + gate(o) for i, o in zip([12, 512, 1036, 1548], widths))
    used = down + conv(3584, 1536) + conv(2560, 1024) + conv(1536, 512) + 512 * 5 + 1
    fifth = conv(2060, 2560) + 2 * conv(2560, 2560) + gate(2560)
    linear = sum(2 * (c // 8) + (c // 8) * c + c for c in [*widths, 2560])
    assert used + fifth + linear == 247_077_697
    with torch.device("meta"):
        masker = build_masker("paper", 12, 1, 1, 512, 0, 5)
    assert sum(p.numel() for p in masker.parameters()) == used


@pytest.mark.parametrize("length", [250, 999, 1000, 1003])
def test_the_papers_masker_keeps_the_length_and_every_parameter_learns(length):
    masker = build_masker("paper", 12, 2, 1, 64, 0, 5)
    out = masker(torch.randn(2, 12, length))
    assert out.shape == (2, 2, length)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in masker.parameters())


def test_an_unknown_masker_is_refused():
    with pytest.raises(UserError, match=r"masker\.name=large is unknown; known: unet, paper"):
        build_masker("large", 12, 1, 10, 8, 1, 5)
