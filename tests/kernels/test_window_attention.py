"""Attention rows of a window against float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from tests.kernels.oracles import DTYPES, assert_close, causal, draw, logits

# (length, query rows, query heads of a KV head, head_dim)
CASES = [(1, 1, 1, 32), (63, 7, 4, 64), (257, 12, 7, 40), (513, 32, 1, 128), (130, 1, 3, 256)]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for heads, kv_heads, rows in ((28, 4, 32), (32, 8, 32)):
        queries = torch.empty(1, heads, rows, dim, dtype=dtype, device="meta")
        keys = torch.empty(1, kv_heads, 32768, dim, dtype=dtype, device="meta")
        lse = torch.empty(1, heads, rows, device="meta")
        kernels.window_attention(queries, keys, dim**-0.5, None, 0, lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "rows", "group", "dim"), CASES)
def test_window_attention(length, rows, group, dim, dtype):
    queries = draw(1, 2 * group, rows, dim, seed=1, dtype=dtype, strided=True)
    keys = draw(1, 2, length, dim, seed=2, dtype=dtype, strided=True)
    visible = causal(rows, length)
    every = logits(queries, keys, dim**-0.5, visible)
    got = kernels.window_attention(queries, keys, dim**-0.5, None, 0, every.logsumexp(-1).float())
    assert_close(got, every.softmax(-1), dtype)
    assert not got.masked_select(~visible).any(), "attends to the future"
    with kernels.using("torch"):
        got = kernels.window_attention(queries, keys, dim**-0.5, None)
    assert_close(got, every.softmax(-1), torch.float32)


@pytest.mark.parametrize("who", ["triton", "torch"])
def test_positions_behind_the_window_and_masks(who):
    queries, keys = draw(2, 3, 9, 32, seed=1), draw(2, 1, 100, 32, seed=2)
    mask = draw(2, 1, 9, 100, seed=3) > 0.4
    with kernels.using(who):
        got = kernels.window_attention(queries, keys, 0.2, None, behind=5)
        wanted = logits(queries, keys, 0.2, causal(9, 100, 5)).softmax(-1)
        assert_close(got, wanted, torch.float32)
        for each in (mask, mask[:1, :, :1]):
            got = kernels.window_attention(queries, keys, 0.2, each)
            wanted = logits(queries, keys, 0.2, each).softmax(-1)
            assert_close(got, wanted, torch.float32)
