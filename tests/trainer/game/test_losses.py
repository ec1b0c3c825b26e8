import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.launch import launch
from trainer.game import losses
from trainer.game.losses import anchors, nt_xent, paper_penalty


def dense(z1: Tensor, z2: Tensor, t: float | Tensor, patients: list[int] | None = None) -> Tensor:
    """Chen et al. 2020, equation 1, written out anchor by anchor; negatives are of other patients."""
    z = torch.cat([z1, z2]).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total = len(z1), 0.0
    who = list(patients or range(n)) * 2
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        similar = [(z[i] @ z[k] / t).exp() for k in range(2 * n) if who[k] != who[i] or k == partner]
        total = total - ((z[i] @ z[partner] / t).exp() / sum(similar)).log()
    return total / (2 * n)


def matrix(z1: Tensor, z2: Tensor, t: float, patients: Tensor) -> Tensor:
    """The same with one matrix of all similarities, for batches too large to be written out."""
    z, who = normalize(torch.cat([z1, z2])), torch.cat([patients, patients])
    partner = torch.eye(len(z), dtype=torch.bool).roll(len(z1), 0)
    logits = (z @ z.T / t).masked_fill((who[:, None] == who) & ~partner, -math.inf)
    return (logits.logsumexp(1) - logits[partner]).mean()


def embeddings(n: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(n, dim, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_equal_the_written_formula(temperature):
    z1, z2 = embeddings(6, 5)
    ours, _ = nt_xent(z1, z2, temperature)
    reference = dense(z1, z2, temperature)
    assert torch.allclose(ours, reference, rtol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(reference, (z1, z2))):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 3, 5, 12, 100])
@pytest.mark.parametrize("patients", [None, [3, 3, 1, 2, 1, 1], [0] * 6])
def test_no_tiling_changes_value_or_gradient_and_a_patients_samples_are_no_negatives(tile, patients, monkeypatch):
    monkeypatch.setattr(losses, "TILE", tile)
    z1, z2 = embeddings(6, 5)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ours, _ = nt_xent(z1, z2, t, None if patients is None else torch.tensor(patients))
    reference = dense(z1, z2, t, patients)
    assert torch.allclose(ours, reference, rtol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, (z1, z2, t)), torch.autograd.grad(reference, (z1, z2, t))):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_at_2048_it_equals_the_dense_float64_formula():
    z1, z2 = embeddings(2048, 64, torch.float32)
    patients = torch.randint(2048, (2048,))
    ours, _ = nt_xent(z1, z2, 0.1, patients)
    exact = [z.detach().double().requires_grad_() for z in (z1, z2)]
    reference = matrix(*exact, 0.1, patients)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(reference, exact)):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_losses_of_all_ranks_make_the_whole(ranks):
    """Each rank's anchors against all embeddings, in the order in which ranks are gathered: view 1 and 2 of each."""
    z1, z2 = embeddings(8, 5)
    patients = torch.tensor([0, 1, 2, 1, 4, 5, 0, 7])
    shares = [torch.cat(parts) for parts in zip(z1.chunk(ranks), z2.chunk(ranks))]
    ids = [torch.cat([p, p]) for p in patients.chunk(ranks)]
    everyone = normalize(torch.cat(shares))
    mean, n = 0.0, 16 // ranks
    for rank in range(ranks):
        share = everyone[rank * n : (rank + 1) * n]
        mean = mean + anchors(share, everyone, ids[rank], torch.cat(ids), rank * n, 0.2)[0].mean() / ranks
    reference = dense(z1, z2, 0.2, patients.tolist())
    assert torch.allclose(mean, reference, rtol=1e-10)
    for a, b in zip(torch.autograd.grad(mean, (z1, z2)), torch.autograd.grad(reference, (z1, z2))):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_at_32768_memory_stays_under_2_gib_and_rows_are_right():
    code, output = launch(["-m", "benchmarks.ntxent", "pairs=[2048,32768]", "dense_up_to=2048"], seconds=850)
    assert code == 0, output
    figures = json.loads(output.splitlines()[-1])
    assert figures["pairs"] == 32768
    assert figures["peak_mib"] < 2048
    assert figures["max_relative_error"] < 1e-5


def test_under_autocast_similarities_stay_fp32():
    z1, z2 = embeddings(8, 4, torch.float32)
    plain = nt_xent(z1, z2, 0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = nt_xent(z1, z2, 0.1)[0]
        gradient = torch.autograd.grad(cast, z1)[0]
    assert torch.equal(plain, cast)
    assert torch.equal(torch.autograd.grad(plain, z1)[0], gradient)


def test_embeddings_that_are_all_alike_are_no_hits_and_a_nan_is_kept():
    alike = torch.ones(4, 3)
    loss, accuracy = nt_xent(alike, alike, 0.1)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)
    assert accuracy == 0
    spoilt = alike.clone()
    spoilt[1, 1] = math.nan
    assert nt_xent(spoilt, alike, 0.1)[0].isnan()


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
