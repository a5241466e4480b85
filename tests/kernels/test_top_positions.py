"""Mean positions of the largest entries, exactly, against Python's own sort."""

from __future__ import annotations

import weakref

import pytest
import torch

from methods import kernels
from methods.kernels import top_positions
from methods.smoothing import drift
from tests.kernels.oracles import DEVICE, draw


def shipped(dtype, dim):
    """The launches of the published setting, on meta tensors; attention is float32 everywhere."""
    for length in (32768, 30001):
        attention = torch.empty(1, 28, 32, length, device="meta")
        kernels.mean_top_positions(attention, [480, 2016, 8160])


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles even in a short row, and less to interpret."""
    monkeypatch.setattr(top_positions, "_config", lambda _: {"BLOCK": 256, "num_warps": 4})


def expected(row, count):
    """Mean position of the largest entries of a list, the lower one first among equals."""
    best = sorted(range(len(row)), key=lambda j: (-row[j], j))[:count]
    return sum(best) / count


def check(attention, counts):
    """Kernel and twin, to the last bit."""
    rows = attention.reshape(-1, attention.shape[-1]).tolist()
    wanted = [[expected(row, count) for row in rows] for count in counts]
    wanted = torch.tensor(wanted, dtype=torch.float64).view(len(counts), *attention.shape[:3])
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            assert torch.equal(kernels.mean_top_positions(attention, counts).cpu(), wanted)


@pytest.mark.parametrize("sharpness", [1.0, 60.0])  # 60: most of a row underflows to 0
@pytest.mark.parametrize(
    ("length", "counts"),
    [(1, [1]), (63, [1, 40, 63]), (257, [256, 3]), (1025, [1, 500])],
)
@pytest.mark.usefixtures("small_tiles")
def test_softmax_rows(length, counts, sharpness):
    attention = (draw(1, 1, 2, length, seed=length) * sharpness).softmax(-1)
    assert (sharpness == 1.0) or length == 1 or bool((attention == 0).any())
    check(attention, counts)


@pytest.mark.usefixtures("small_tiles")
def test_ties_go_to_the_lower_position():
    equal = torch.full((1, 1, 1, 257), 1 / 257, device=DEVICE)
    check(equal, [1, 100, 257])
    check(torch.zeros_like(equal), [100])
    check(draw(1, 2, 1, 300, seed=5).abs().round(), [1, 7, 50, 200])
    rounded = draw(1, 1, 1, 300, seed=5).abs().round() * torch.finfo(torch.float32).tiny / 8
    check(rounded, [7, 200, 300])  # denormal numbers are not zero


def test_every_digit_of_the_bits_counts():
    bits = torch.arange(2**23 + 600, 2**23, -1, dtype=torch.int32)  # adjacent numbers
    check(bits.view(torch.float32).view(1, 1, 1, 600).to(DEVICE), [1, 255, 257, 599])
    scale = torch.linspace(-40, 38, 200).double()  # all the numbers there are
    check((10.0**scale).float().view(1, 1, 1, 200).to(DEVICE), [1, 30, 150])


def test_rows_longer_than_a_tile():
    tile = top_positions._config(90)["BLOCK"]
    attention = (draw(1, 1, 2, 2 * tile + 100, seed=8) * 9).softmax(-1)
    attention[..., 1, ::3] = 0.25  # equal entries in every tile
    check(attention, [50, tile + 7])


@pytest.mark.usefixtures("small_tiles")
def test_rows_that_are_slices(monkeypatch):
    attention = draw(2, 3, 3, 90, seed=2).softmax(-1)[:, 1:, 1:2]
    check(attention, [20])
    check(draw(90, 2, 1, 2, seed=2).exp().permute(1, 2, 3, 0), [20])
    monkeypatch.setattr(top_positions, "_TWIN_BYTES", 24 * 90 * 3)  # in blocks of 3 rows
    with kernels.using("torch"):
        in_blocks = kernels.mean_top_positions(attention, [20])
    assert torch.equal(in_blocks, kernels.mean_top_positions(attention, [20]))


@pytest.mark.parametrize("counts", [[0], [3, 10]])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="give 1 to 9"):
        kernels.mean_top_positions(torch.ones(1, 1, 1, 9, device=DEVICE), counts)


@pytest.mark.usefixtures("small_tiles")
def test_drift_of_all_heads_and_of_some_at_a_time():
    attention = (draw(2, 4, 3, 70, seed=6) * 3).softmax(-1)
    with kernels.using("torch"):
        whole = drift(attention, [3, 30])
        means = kernels.mean_top_positions(attention, [3, 30])
        assert whole.shape == (2, 2, 4)
        wanted = means[..., 0] - means[..., 1:].mean(-1)
        assert torch.allclose(whole, wanted, rtol=0, atol=1e-12)
        assert torch.equal(drift((part for part in attention.split([1, 3], 1)), [3, 30]), whole)
        assert not drift(attention[:, :, :1], [3, 30]).any()
    assert torch.equal(drift(attention[:1].split(2, 1), [30]), whole[1:, :1])


def test_drift_holds_one_part_at_a_time():
    made = []

    def make(seed):
        assert all(part() is None for part in made)
        part = draw(1, 2, 2, 20, seed=seed).softmax(-1)
        made.append(weakref.ref(part))
        return part

    with kernels.using("torch"):
        assert drift((make(seed) for seed in range(3)), [4]).shape == (1, 1, 6)
    assert len(made) == 3
