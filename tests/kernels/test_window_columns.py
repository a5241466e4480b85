"""Attention that keys collect from a window, and the output it makes, against float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from methods.kernels import window_rows
from tests.kernels.oracles import DTYPES, TOLERANCE, assert_close, causal, draw, logits

# (length, query rows, query heads of a KV head, head_dim, dim of a value)
CASES = [
    (1, 1, 1, 32, 32),
    (63, 7, 4, 64, 40),
    (257, 12, 7, 40, 64),
    (513, 32, 1, 128, 128),
    (130, 1, 3, 256, 16),
]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for heads, kv_heads, rows in ((28, 4, 32), (32, 8, 32), (28, 4, 1)):
        queries = torch.empty(1, heads, rows, dim, dtype=dtype, device="meta")
        keys = torch.empty(1, kv_heads, 32768, dim, dtype=dtype, device="meta")
        lse = torch.empty(1, heads, rows, device="meta")
        weights = None if rows == 1 else torch.empty(rows, device="meta")
        values = None if rows == 1 else torch.empty_like(keys)
        kernels.window_columns(queries, keys, 0.1, weights, lse=lse, values=values)
    # A model whose images look ahead, and a length that no load is aligned to.
    queries, keys = (torch.empty(1, n, 1001, dim, dtype=dtype, device="meta") for n in (28, 4))
    mask = torch.empty(1, 1, 32, 1001, dtype=torch.bool, device="meta")
    lse = torch.empty(1, 28, 32, device="meta")
    queries, weights = queries[:, :, -32:], lse[0, 0]
    kernels.window_columns(queries, keys, 0.1, weights, mask, 0, lse, keys)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Each program then takes several tiles, as on a GPU with long prompts."""
    monkeypatch.setattr(window_rows, "processors", lambda device: 8)


def expected(queries, keys, scaling, weights, visible, values, past):
    """(columns, outputs, size of the outputs' terms), float64, each head with KV of its own."""
    attention = logits(queries, keys, scaling, visible).softmax(-1)
    columns = (weights.double()[:, None] * attention).sum(2)
    group = queries.shape[1] // keys.shape[1]
    values = values.double().repeat_interleave(group, 1)[:, :, :past]
    terms = columns[:, :, :past, None] * values
    return columns, terms.sum(2), terms.square().sum(2).sqrt()


def assert_outputs(got, wanted, size, tolerance):
    """Within the tolerance of the length of the output and of what it was summed from."""
    assert got.shape == wanted.shape
    allowed = tolerance * (wanted.norm(dim=-1) + size.norm(dim=-1))
    assert bool(((got.double() - wanted).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "rows", "group", "dim", "width"), CASES)
def test_window_columns(length, rows, group, dim, width, dtype):
    queries = draw(1, 2 * group, rows, dim, seed=1, dtype=dtype, strided=True)
    keys = draw(1, 2, length, dim, seed=2, dtype=dtype, strided=True)
    values = draw(1, 2, length, width, seed=3, dtype=dtype, strided=True)
    weights = draw(rows, seed=4).abs()
    columns, outputs, size = expected(
        queries, keys, dim**-0.5, weights, causal(rows, length), values, length
    )
    arguments = (queries, keys, dim**-0.5, weights)
    got = kernels.window_columns(*arguments, values=values)
    assert_close(got[0], columns, dtype)
    assert_outputs(got[1], outputs, size, TOLERANCE[dtype])
    with kernels.using("torch"):
        got = kernels.window_columns(*arguments, values=values)
    assert_close(got[0], columns, torch.float32)
    assert_outputs(got[1], outputs, size, TOLERANCE[torch.float32])


@pytest.mark.parametrize("who", ["triton", "torch"])
@pytest.mark.parametrize("past", [0, 70])
def test_masks_positions_behind_and_the_past(past, who):
    queries, keys = draw(2, 3, 4, 32, seed=1), draw(2, 1, 100, 32, seed=2)
    values, weights = draw(2, 1, 100, 48, seed=3), draw(4, seed=4)
    mask = draw(2, 1, 4, 100, seed=5) > 0.4
    for behind, given in ((5, None), (0, mask), (0, mask[:1, :, :1]), (3, mask[:1])):
        visible = causal(4, 100, behind) if given is None else given
        lse = logits(queries, keys, 0.2, visible).logsumexp(-1).float()
        columns, outputs, size = expected(queries, keys, 0.2, weights, visible, values, past)
        with kernels.using(who):
            arguments = (queries, keys, 0.2, weights, given, behind)
            got = kernels.window_columns(*arguments, lse=lse, values=values, past=past)
            alone = kernels.window_columns(*arguments)
        assert_close(got[0], columns, torch.float32)
        assert_outputs(got[1], outputs, size, TOLERANCE[torch.float32])
        assert_close(alone[0], columns, torch.float32)
        assert alone[1] is None
        if given is None:
            assert not got[0][..., 95:].any(), "keys in the future of all rows collect nothing"


def test_no_weights_are_ones_and_long_windows_go_in_pieces():
    dtype = torch.float16
    queries = draw(1, 3, 150, 64, seed=1, dtype=dtype)
    keys, values = (draw(1, 1, 200, 64, seed=seed, dtype=dtype) for seed in (2, 3))
    ones = torch.ones(150, device=keys.device)
    columns, outputs, size = expected(queries, keys, 0.1, ones, causal(150, 200), values, 200)
    got = kernels.window_columns(queries, keys, 0.1, None, values=values)
    assert_close(got[0], columns, dtype)
    assert_outputs(got[1], outputs, size, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_of_tiny_columns(dtype):
    """Columns of 1e-9, far below what float16 holds, as weights of long prompts may leave them."""
    queries, keys = draw(1, 2, 4, 32, seed=1, dtype=dtype), draw(1, 1, 300, 32, seed=2, dtype=dtype)
    values = draw(1, 1, 300, 64, seed=3, dtype=dtype)
    weights = torch.full((4,), 1e-7, device=keys.device)
    columns, outputs, _ = expected(queries, keys, 0.0, weights, causal(4, 300), values, 300)
    got = kernels.window_columns(queries, keys, 0.0, weights, values=values)
    assert_close(got[0], columns, torch.float32)
    error = (got[1].double() - outputs).norm(dim=-1)
    assert bool((error <= 1e-4 * outputs.norm(dim=-1)).all())
