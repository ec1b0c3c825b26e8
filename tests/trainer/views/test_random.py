import numpy as np
import pytest
import torch
from scipy import stats

from tests.support.devices import on_each
from trainer.views.random import Key, bits, integers, normal, uniform

MASK = 0xFFFFFFFF


def key(index, seed=7, epoch=3, view=1):
    return Key(seed, epoch, torch.as_tensor(index, dtype=torch.int64), view)


def lowbias32(x):
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def crc32(data: bytes) -> int:
    crc = MASK
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ MASK


def bits_in_uint32(seed, epoch, view, op, index, count):
    """The same hash written for one sample in numpy's wrapping uint32."""
    states = []
    for lane in (0x243F6A88, 0x85A308D3):
        words = [seed, seed >> 32, epoch, view, crc32(op.encode()), index, index >> 32]
        state = np.array([lane], dtype=np.uint32)
        for word in words:
            state = lowbias32(state ^ np.uint32(word & MASK))
        states.append(state)
    return lowbias32(lowbias32(np.arange(count, dtype=np.uint32) ^ states[0]) ^ states[1])


@pytest.mark.parametrize(
    ("seed", "epoch", "view"), [(0, 0, 0), (7, 3, 1), (2**32 - 1, 9, 0), (2**64 - 1, 2**31, 5), (-1, 0, 1)]
)
@pytest.mark.parametrize("op", ["a", "vcg.angle", "block_mask#2.start"])
def test_equals_a_second_implementation_in_uint32(seed, epoch, view, op):
    index = [0, 1, 12345, 2**31 - 1, 2**32 + 5, 2**40 + 3]
    got = bits(key(index, seed, epoch, view), op, (5, 11))
    assert got.dtype == torch.int64
    assert got.shape == (len(index), 5, 11)
    for row, i in zip(got, index):
        expected = bits_in_uint32(seed, epoch, view, op, i, 55)
        assert row.flatten().tolist() == expected.tolist()


def test_golden_values():
    """Typed in: whoever changes the hash changes every view of every past run."""
    assert bits(key([0, 1, 2**33]), "golden", (3,)).tolist() == [
        [3027890501, 2479673609, 2369710025],
        [3664232772, 4287483920, 1805836694],
        [570219684, 763477966, 1558148956],
    ]
    unit = uniform(key([0], seed=0, epoch=0, view=0), "golden", (2,))
    assert unit.tolist() == [[0.33943915367126465, 0.8261409997940063]]
    assert integers(key([0, 1]), "golden", (4,), 1000).tolist() == [[704, 577, 551, 950], [853, 998, 420, 95]]
    torch.testing.assert_close(
        normal(key([0]), "golden", (3,)), torch.tensor([[1.495262, 0.7759805, 1.0204393]]), atol=2e-6, rtol=0
    )


def test_a_sample_gets_the_same_numbers_alone_and_in_any_batch():
    batch = torch.tensor([9, 4, 1000, 77, 3])
    for draw in (bits, uniform, normal, lambda k, op, shape: integers(k, op, shape, 37)):
        together = draw(key(batch), "op", (3, 7))
        alone = torch.cat([draw(key(batch[i : i + 1]), "op", (3, 7)) for i in range(5)])
        turned = draw(key(batch.flip(0)), "op", (3, 7)).flip(0)
        assert torch.equal(together, alone)
        assert torch.equal(together, turned)


def test_uniform_over_the_whole_range():
    words = bits(key(range(400)), "chi", (500,)).numpy().ravel()
    assert words.min() >= 0
    assert words.max() < 2**32
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift) & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
    ones = ((words[:, None] >> np.arange(32)) & 1).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))


def test_across_samples_and_across_epochs_uniform_too():
    for words in (
        bits(key(range(100_000)), "chi").numpy(),
        torch.cat([bits(key([5], epoch=e), "chi") for e in range(1000)]).numpy(),
        torch.cat([bits(key([5], seed=s), "chi") for s in range(1000)]).numpy(),
    ):
        counts = np.bincount(words >> 26, minlength=64)
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("neighbour", ["index", "far index", "element", "view", "epoch", "seed", "high seed", "op"])
def test_neighbours_are_unrelated(neighbour):
    index, shape = torch.arange(500), (400,)
    here = bits(key(index), "op", shape)
    there = {
        "index": lambda: bits(key(index + 1), "op", shape),
        "far index": lambda: bits(key(index + 2**32), "op", shape),
        "element": lambda: here.roll(1, dims=1),
        "view": lambda: bits(key(index).with_view(2), "op", shape),
        "epoch": lambda: bits(key(index, epoch=4), "op", shape),
        "seed": lambda: bits(key(index, seed=8), "op", shape),
        "high seed": lambda: bits(key(index, seed=7 + 2**32), "op", shape),
        "op": lambda: bits(key(index), "op2", shape),
    }[neighbour]()
    count = here.numel()
    correlation = np.corrcoef(here.numpy().ravel(), there.numpy().ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(count)
    flipped = here ^ there
    for bit in range(32):
        share = ((flipped >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_streams_of_different_samples_do_not_overlap():
    words = bits(key(range(60)), "op", (400,)).flatten()
    assert len(words.unique()) > len(words) - 5  # 0.07 repeats expected by chance


def test_no_two_samples_share_a_stream():
    first = bits(key(range(200_000)), "op", (2,))
    pairs = (first[:, 0] << 31) ^ first[:, 1]
    assert len(pairs.unique()) == len(pairs)


def test_an_empty_batch_is_an_empty_tensor():
    assert bits(key([]), "op", (3, 2)).shape == (0, 3, 2)
    assert normal(key([]), "op").shape == (0,)


def test_with_view_changes_the_view_alone():
    one = key([1, 2], seed=5, epoch=6, view=0)
    two = one.with_view(9)
    assert (two.seed, two.epoch, two.view) == (5, 6, 9)
    assert two.index is one.index
    assert one.view == 0


def test_uniform_range_and_distribution():
    values = uniform(key(range(100)), "u", (1000,), -45.0, 45.0)
    assert values.dtype == torch.float32
    assert -45 <= values.min() < -44.9
    assert 44.9 < values.max() <= 45
    assert stats.kstest(values.numpy().ravel(), stats.uniform(-45, 90).cdf).pvalue > 1e-4


def test_uniform_never_reaches_one():
    unit = uniform(key(range(2000)), "u", (1000,))
    assert unit.min() >= 0
    assert unit.max() < 1


def test_normal_distribution_and_tails():
    values = normal(key(range(1000)), "n", (1000,))
    assert values.dtype == torch.float32
    sample = values.numpy().ravel().astype(np.float64)
    assert stats.kstest(sample, stats.norm.cdf).pvalue > 1e-4
    assert abs(sample.mean()) < 5 / 1e3
    assert abs(sample.var() - 1) < 5 * np.sqrt(2) / 1e3
    assert abs(stats.kurtosis(sample)) < 5 * np.sqrt(24) / 1e3
    beyond = (np.abs(sample) > 4).sum()
    assert 30 < beyond < 105  # 63 expected of a million
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5 / 1e3


def test_integers_cover_their_range_evenly():
    for high in (1, 2, 7, 501):
        values = integers(key(range(300)), "i", (200,), high)
        assert values.dtype == torch.int64
        counts = np.bincount(values.numpy().ravel(), minlength=high)
        assert len(counts) == high
        assert high == 1 or stats.chisquare(counts).pvalue > 1e-4
    assert integers(key(range(3000)), "i", (), 2**31).max() > 2**31 - 2**22


@pytest.mark.parametrize("high", [0, -3, 2**31 + 1])
def test_integers_refuse_an_impossible_range(high):
    with pytest.raises(ValueError, match="high must be in"):
        integers(key([0]), "i", (1,), high)


@pytest.mark.parametrize("device", on_each())
def test_each_device_gives_the_same_numbers(device):
    index = torch.arange(64) * 977 + 2**31
    for draw in (bits, uniform, normal, lambda k, op, shape: integers(k, op, shape, 37)):
        assert torch.equal(draw(key(index), "op", (12, 100)), draw(key(index.to(device)), "op", (12, 100)).cpu())
