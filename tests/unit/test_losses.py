import math

import pytest
import torch

from trainer.losses import nt_xent, paper_penalty


def dense(z1: torch.Tensor, z2: torch.Tensor, t: float) -> torch.Tensor:
    """Chen et al. 2020, equation 1, written out anchor by anchor."""
    z = torch.cat([z1, z2]).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total = len(z1), 0.0
    for i in range(2 * n):
        similar = [(z[i] @ z[k] / t).exp() for k in range(2 * n) if k != i]
        total = total - ((z[i] @ z[(i + n) % (2 * n)] / t).exp() / sum(similar)).log()
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_equal_the_written_formula(temperature):
    torch.manual_seed(0)
    z1, z2 = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours, _ = nt_xent(z1, z2, temperature)
    reference = dense(z1, z2, temperature)
    assert torch.allclose(ours, reference, rtol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(reference, (z1, z2))):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_accuracy_counts_anchors_whose_partner_is_nearest():
    z = torch.eye(4)
    assert nt_xent(z, z.clone(), 0.1)[1] == 1
    assert nt_xent(z, z.roll(1, 0), 0.1)[1] < 1


def test_bf16_embeddings_are_compared_in_fp32():
    torch.manual_seed(0)
    z1, z2 = torch.randn(8, 4).bfloat16(), torch.randn(8, 4).bfloat16()
    assert nt_xent(z1, z2, 0.1)[0].dtype == torch.float32
    assert torch.allclose(nt_xent(z1, z2, 0.1)[0], nt_xent(z1.float(), z2.float(), 0.1)[0])


def test_the_penalty_sums_over_masks_and_is_smallest_at_half_over_r():
    masks = torch.full((3, 2, 10), 0.25)
    assert paper_penalty(masks, 0.1, 1.0).item() == pytest.approx(0.1 * 2 / math.sin(math.pi / 4), rel=1e-6)
    c = torch.linspace(0.01, 0.99, 981)
    costs = [paper_penalty(torch.full((1, 1, 4), float(v)), 1.0, 0.8).item() for v in c]
    assert c[int(torch.tensor(costs).argmin())].item() == pytest.approx(0.5 / 0.8, abs=2e-3)
