import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from trainer.views import Key, build
from trainer.views.random import uniform
from trainer.views.vcg import rotation
from umbra.errors import UserError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# As printed by Edenbrandt and Pahlm 1988: columns V1 to V6, I, II.
PRINTED = np.array(
    [
        [-0.172, -0.074, 0.122, 0.231, 0.239, 0.194, 0.156, -0.010],
        [0.057, -0.019, -0.106, -0.022, 0.041, 0.048, -0.227, 0.887],
        [-0.229, -0.310, -0.246, -0.063, 0.055, 0.108, 0.022, 0.102],
    ]
)
PRINTED_LEADS = ("V1", "V2", "V3", "V4", "V5", "V6", "I", "II")


def signal(batch=16, samples=200, seed=0):
    """A random ECG in mV, limb leads after Einthoven and Goldberger."""
    x = torch.randn(batch, 12, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, two = x[:, 0].clone(), x[:, 1].clone()
    x[:, 2], x[:, 3], x[:, 4], x[:, 5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return x.float()


def keys(batch=16, start=0, **more):
    return Key(**({"seed": 3, "epoch": 1, "view": 0} | more), index=torch.arange(start, start + batch))


def vcg(x, key, leads=LEADS, **args):
    return build([{"name": "vcg", **args}], leads).signal_views(x, key, 500.0)


def reference(x, angles, scales):
    """The view in float64 for one record [12, T]: angles in degrees about z, y, x; scales of X, Y, Z."""
    record = dict(zip(LEADS, x.double().numpy()))
    vector = PRINTED @ np.stack([record[lead] for lead in PRINTED_LEADS])
    vector = np.diag(scales) @ Rotation.from_euler("zyx", angles, degrees=True).as_matrix() @ vector
    eight = dict(zip(PRINTED_LEADS, np.linalg.pinv(PRINTED) @ vector))
    one, two = eight["I"], eight["II"]
    eight |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return np.stack([eight[lead] for lead in LEADS])


def test_equals_the_reference_at_the_angles_and_scales_drawn():
    x, key = signal(), keys()
    out = vcg(x, key, max_angle=30, max_scale=2.0)
    angles = uniform(key, "vcg.angle", (3,), -30, 30).double().numpy()
    scales = uniform(key, "vcg.scale", (3,), 1, 2).double().numpy()
    for i in range(16):
        np.testing.assert_allclose(out[i].numpy(), reference(x[i], angles[i], scales[i]), atol=2e-5)


def test_without_turning_and_stretching_it_is_the_projection():
    x = signal()
    out = vcg(x, keys(), max_angle=0, max_scale=1)
    for i in range(16):
        np.testing.assert_allclose(out[i].numpy(), reference(x[i], [0, 0, 0], [1, 1, 1]), atol=1e-5)
    again = vcg(out, keys(), max_angle=0, max_scale=1)
    torch.testing.assert_close(again, out, atol=1e-5, rtol=1e-5)
    assert (out - x).abs().max() > 0.1


@pytest.mark.parametrize("lead", ["I", "V6"])
def test_an_ecg_that_lacks_a_lead_stays_as_it_is(lead):
    """A lead that was not recorded is 0 throughout, and must not be made up from the others."""
    x = signal()
    x[3, LEADS.index(lead)] = 0
    x[4, LEADS.index(lead), :-1] = 0
    out = vcg(x, keys())
    assert torch.equal(out[3], x[3])
    others = torch.arange(16) != 3
    key = keys()
    assert torch.equal(out[others], vcg(x[others], Key(key.seed, key.epoch, key.index[others], key.view)))
    assert not torch.equal(out[4], x[4])


def test_einthoven_and_goldberger_hold_exactly():
    out = dict(zip(LEADS, vcg(signal(), keys()).unbind(1)))
    one, two = out["I"], out["II"]
    assert torch.equal(out["III"], two - one)
    assert torch.equal(out["aVR"], -(one + two) / 2)
    assert torch.equal(out["aVL"], one - two / 2)
    assert torch.equal(out["aVF"], two - one / 2)


def test_rotations_are_scipys_and_orthonormal():
    angles = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 6 - 3
    turns = rotation(angles)
    np.testing.assert_allclose(turns.numpy(), Rotation.from_euler("zyx", angles.numpy()).as_matrix(), atol=1e-14)
    identity = torch.eye(3, dtype=torch.float64).expand(200, 3, 3)
    torch.testing.assert_close(turns @ turns.mT, identity, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(200, dtype=torch.float64), atol=1e-13, rtol=0)


def test_turning_alone_keeps_the_length_of_the_heart_vector():
    x, columns = signal(), [LEADS.index(lead) for lead in PRINTED_LEADS]
    out = vcg(x, keys(), max_scale=1)
    before, after = (np.linalg.norm(PRINTED @ y[:, columns].double().numpy(), axis=1) for y in (x, out))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert (out - vcg(x, keys(), max_scale=1, max_angle=0)).abs().max() > 0.1


def test_angles_and_scales_fill_their_ranges():
    """Measured on the output: unit heart vectors in, the moved axes out."""
    batch = 2000
    axes = np.linalg.pinv(PRINTED)  # the eight leads of X, Y and Z, one millivolt each
    eight = dict(zip(PRINTED_LEADS, axes))
    record = np.stack([eight.get(lead, np.zeros(3)) for lead in LEADS])
    x = torch.tensor(record, dtype=torch.float32).expand(batch, 12, 3)
    columns = [LEADS.index(lead) for lead in PRINTED_LEADS]
    out = vcg(x, keys(batch))
    moves = PRINTED @ out[:, columns].double().numpy()  # scales @ rotation
    scales = np.linalg.norm(moves, axis=2)
    assert stats.kstest(scales.ravel(), stats.uniform(1, 0.5).cdf).pvalue > 1e-4
    angles = Rotation.from_matrix(moves / scales[:, :, None]).as_euler("zyx", degrees=True)
    for axis in range(3):
        assert stats.kstest(angles[:, axis], stats.uniform(-45, 90).cdf).pvalue > 1e-4
    draws = np.concatenate([angles, scales], axis=1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 5 / np.sqrt(batch)


def test_the_two_views_the_samples_and_the_epochs_draw_their_own():
    x = signal()
    here = vcg(x, keys())
    assert torch.equal(here, vcg(x, keys()))
    for other in (keys().with_view(1), keys(epoch=2), keys(seed=4), keys(start=16)):
        assert ((here - vcg(x, other)).abs().amax((1, 2)) > 1e-2).all()


def test_a_record_is_viewed_alike_alone_and_in_a_batch():
    x = signal(batch=7, samples=1003)
    together = vcg(x, keys(7))
    alone = torch.cat([vcg(x[i : i + 1], keys(1, start=i)) for i in range(7)])
    assert torch.equal(together, alone)


def test_leads_are_found_by_name():
    x = signal()
    order = [8, 1, 0, 11, 6, 7, 10, 9, 4]  # eight independent leads and aVL, shuffled
    out = vcg(x[:, order], keys(), leads=[LEADS[i] for i in order])
    assert torch.equal(out, vcg(x, keys())[:, order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_whatever_the_dtype_and_under_autocast(dtype):
    x = signal().to(dtype)
    expected = vcg(x.float(), keys())
    out = vcg(x, keys())
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vcg(x.float(), keys()), expected)


def test_the_input_is_left_alone():
    x = signal()
    before = x.clone()
    vcg(x, keys())
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        (("I", "II", "V1", "V2"), "needs lead V3, V4, V5, V6, but the data have I, II, V1, V2"),
        (LEADS + ("V7",), "cannot derive lead V7"),
    ],
)
def test_leads_that_do_not_fit_are_refused(leads, message):
    with pytest.raises(UserError, match=message):
        build(["vcg"], leads)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_angle": -1}, "max_angle must be 0 to 180"),
        ({"max_angle": 270}, "max_angle must be 0 to 180"),
        ({"max_scale": 0.5}, "max_scale must be at least 1"),
        ({"max_angle": "45"}, "max_angle must be of type float, not '45'"),
    ],
)
def test_arguments_out_of_range_are_refused(args, message):
    with pytest.raises(UserError, match=message):
        build([{"name": "vcg", **args}], LEADS)
