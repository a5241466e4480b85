"""Log-sum-exp of a window's logits against float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from methods.kernels import window_rows
from tests.kernels.oracles import DTYPES, assert_close, causal, draw, logits

# (length, query rows, query heads of a KV head, head_dim)
CASES = [(1, 1, 1, 32), (63, 7, 4, 64), (257, 12, 7, 40), (1025, 32, 1, 128), (130, 1, 3, 256)]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for heads, kv_heads, rows in ((28, 4, 32), (32, 8, 32), (28, 4, 1)):
        queries = torch.empty(1, heads, rows, dim, dtype=dtype, device="meta")
        keys = torch.empty(1, kv_heads, 32768, dim, dtype=dtype, device="meta")
        kernels.window_lse(queries, keys, dim**-0.5)
    # A model whose images look ahead, and a length that no load is aligned to.
    queries, keys = (torch.empty(1, n, 1001, dim, dtype=dtype, device="meta") for n in (28, 4))
    mask = torch.empty(1, 1, 32, 1001, dtype=torch.bool, device="meta")
    kernels.window_lse(queries[:, :, -32:], keys, dim**-0.5, mask)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Each program then takes several tiles, as on a GPU with long prompts."""
    monkeypatch.setattr(window_rows, "processors", lambda device: 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "rows", "group", "dim"), CASES)
def test_window_lse(length, rows, group, dim, dtype):
    queries = draw(1, 2 * group, rows, dim, seed=1, dtype=dtype, strided=True)
    keys = draw(1, 2, length, dim, seed=2, dtype=dtype, strided=True)
    wanted = logits(queries, keys, dim**-0.5, causal(rows, length)).logsumexp(-1)
    assert_close(kernels.window_lse(queries, keys, dim**-0.5), wanted, dtype)
    with kernels.using("torch"):
        assert_close(kernels.window_lse(queries, keys, dim**-0.5), wanted, torch.float32)


def test_positions_behind_the_window_and_masks():
    queries, keys = draw(2, 4, 9, 32, seed=1), draw(2, 2, 100, 32, seed=2)
    wanted = logits(queries, keys, 0.2, causal(9, 100, 5)).logsumexp(-1)
    assert_close(kernels.window_lse(queries, keys, 0.2, behind=5), wanted, torch.float32)
    mask = draw(2, 1, 9, 100, seed=3) > 0.4
    wanted = logits(queries, keys, 0.2, mask).logsumexp(-1)
    assert_close(kernels.window_lse(queries, keys, 0.2, mask), wanted, torch.float32)
    row = mask[:1, :, :1]
    wanted = logits(queries, keys, 0.2, row).logsumexp(-1)
    assert_close(kernels.window_lse(queries, keys, 0.2, row), wanted, torch.float32)
