"""Pooling over neighbouring tokens against float64 sums of plain slices."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from tests.kernels.oracles import DEVICE, draw


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors; scores are float32 everywhere."""
    for length in (32768, 30001):
        scores = torch.empty(1, 4, length, device="meta")
        for kind in ("avg", "max", "edge"):
            kernels.pool(scores, [32, 32, 16], kind, 5)
        widths = torch.empty(1, 4, 3, dtype=torch.int64, device="meta").movedim(-1, 0)
        kernels.pool_adaptive(scores, [32, 32, 16], widths, torch.empty_like(widths))


def expected(line, window, kind, half, shift=0):
    """float64 [L - window]: each token's neighbours in the line padded far enough."""
    line = line.double()[: line.shape[0] - window]
    around = half + abs(shift)
    ends = {"avg": (0.0, 0.0), "max": (-torch.inf, -torch.inf)}.get(kind, (line[0], line[-1]))
    left, right = (torch.full((around,), float(end), device=line.device) for end in ends)
    padded = torch.cat([left.double(), line, right.double()])
    reduce = torch.amax if kind == "max" else torch.mean
    first = around - half + shift
    spans = [padded[first + j : first + j + 2 * half + 1] for j in range(len(line))]
    return torch.stack([reduce(span, 0) for span in spans])


def assert_pooled(pooled, scores, windows, wanted):
    """wanted(plan, index of the head) gives what the candidates of a plan shall be."""
    assert pooled.shape == (len(windows), *scores.shape)
    assert pooled.dtype == torch.float32
    lines = pooled.reshape(len(windows), -1, scores.shape[-1])
    for plan, window in enumerate(windows):
        candidates = scores.shape[-1] - window
        for head in range(lines.shape[1] if candidates else 0):
            got = lines[plan, head, :candidates].double()
            assert torch.allclose(got, wanted(plan, head), rtol=1e-5, atol=1e-5)


def check(call, scores, windows, wanted):
    """Kernel and twin."""
    pooled = call()
    assert pooled.isfinite().all(), "not every element was written"
    assert_pooled(pooled, scores, windows, wanted)
    with kernels.using("torch"):
        assert_pooled(call(), scores, windows, wanted)


@pytest.mark.parametrize("kind", ["avg", "max", "edge"])
@pytest.mark.parametrize(
    ("length", "windows", "kernel"),
    [
        (1, [0], 1),
        (1, [0, 1], 5),
        (63, [0, 32, 62], 7),
        (257, [7], 1),
        (300, [299, 32, 300], 21),
        (1025, [0, 32], 5),
        (1025, [1], 41),
    ],
)
def test_fixed_windows(length, windows, kernel, kind):
    scores = draw(2, 2, length, 3, seed=length)[..., 1]  # strided
    lines = scores.reshape(-1, length)
    check(
        lambda: kernels.pool(scores, windows, kind, kernel),
        scores,
        windows,
        lambda plan, head: expected(lines[head], windows[plan], kind, kernel // 2),
    )


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 1, 3, 40)])
def test_any_leading_dimensions(shape):
    scores = draw(*shape, seed=4)
    lines = scores.reshape(-1, 40)
    check(
        lambda: kernels.pool(scores, [0, 8], "avg", 5),
        scores,
        [0, 8],
        lambda plan, head: expected(lines[head], [0, 8][plan], "avg", 2),
    )


@pytest.mark.parametrize(
    ("length", "windows", "widths", "shifts"),
    [
        (1, [0, 1], [1, 5, 3, 9], [0, 2, -2, 40]),
        (63, [0, 32, 62], [5, 71, 31, 1], [0, -70, 3, 64]),
        (257, [7], [21, 5, 101, 1], [-10, 0, 150, 7]),
        (1025, [0, 32], [5, 101, 1, 201], [0, -166, 1100, 150]),
    ],
)
def test_a_window_for_each_head_and_plan(length, windows, widths, shifts):
    scores = draw(length, 2, 2, seed=length).movedim(0, -1)  # strided
    lines = scores.reshape(-1, length)

    def of_each(numbers):  # the plans see them in another order, and the plan runs fastest
        rolled = [numbers[plan:] + numbers[:plan] for plan in range(len(windows))]
        each = torch.tensor(rolled, device=DEVICE).view(-1, 2, 2)
        return each.movedim(0, -1).contiguous().movedim(-1, 0)

    width, shift = of_each(widths), of_each(shifts).flip(0)

    def wanted(plan, head):
        half, moved = (int(each.flatten(1)[plan, head]) for each in (width // 2, shift))
        return expected(lines[head], windows[plan], "edge", half, moved)

    check(lambda: kernels.pool_adaptive(scores, windows, width, shift), scores, windows, wanted)


def test_fixed_and_adaptive_windows_agree():
    scores = draw(1, 3, 500, seed=3).abs()
    five = torch.full((2, 1, 3), 5, device=DEVICE)
    fixed = kernels.pool(scores, [32, 9], "edge", 5)
    assert torch.equal(kernels.pool_adaptive(scores, [32, 9], five, torch.zeros_like(five)), fixed)
