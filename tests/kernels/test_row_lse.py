"""Log-sum-exp of the logits of all queries against float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from methods.kernels.row_lse import row_lse
from tests.kernels.oracles import assert_close, causal, draw, logits
from tests.kernels.visibilities import KINDS, visibility

# (batch, length, KV heads, query heads of one, head_dim, dtype): no two odd in the same way
CASES = [
    (2, 1, 2, 1, 32, torch.float32),
    (2, 63, 2, 4, 64, torch.float32),
    (1, 130, 1, 3, 256, torch.float32),
    (1, 130, 1, 3, 256, torch.bfloat16),
    (1, 257, 1, 7, 40, torch.float16),
    (1, 1025, 1, 1, 128, torch.bfloat16),
    (1, 1025, 1, 1, 1, torch.float16),
]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for length, kind in ((32768, "causal"), (1001, "one_row"), (32768, "mask")):
        queries = torch.empty(1, 28, length, dim, dtype=dtype, device="meta")
        keys = torch.empty(1, 4, length, dim, dtype=dtype, device="meta")
        rows = length if kind == "mask" else 1
        mask = torch.empty(1, 1, rows, length, dtype=torch.bool, device="meta")
        row_lse(queries, keys, dim**-0.5, None if kind == "causal" else mask)


@pytest.mark.parametrize(("batch", "length", "kv_heads", "group", "dim", "dtype"), CASES)
def test_row_lse(batch, length, kv_heads, group, dim, dtype):
    queries = draw(batch, kv_heads * group, length, dim, seed=1, dtype=dtype, strided=True)
    keys = draw(batch, kv_heads, length, dim, seed=2, dtype=dtype, strided=True)
    wanted = logits(queries, keys, dim**-0.5, causal(length, length)).logsumexp(-1)
    assert_close(row_lse(queries, keys, dim**-0.5), wanted, dtype)
    with kernels.using("torch"):
        assert_close(row_lse(queries, keys, dim**-0.5), wanted, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_what_queries_see(kind):
    options, visible = visibility(kind, 150)
    queries, keys = draw(2, 2, 150, 24, seed=1), draw(2, 1, 150, 24, seed=2)
    wanted = logits(queries, keys, 0.2, visible).logsumexp(-1)
    assert_close(row_lse(queries, keys, 0.2, **options), wanted, torch.float32)
    with kernels.using("torch"):
        assert_close(row_lse(queries, keys, 0.2, **options), wanted, torch.float32)


def test_queries_that_see_nothing_and_negative_scaling():
    queries, keys = draw(1, 2, 70, 16, seed=1), draw(1, 2, 70, 16, seed=2)
    mask = causal(70, 70).clone()
    mask[:, :, 40:66] = False
    wanted = logits(queries, keys, -3.0, mask).logsumexp(-1)
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            assert_close(row_lse(queries, keys, -3.0, mask), wanted, torch.float32)


def test_a_mask_and_a_blind_part_exclude_each_other():
    queries = draw(1, 1, 4, 16, seed=1)
    with pytest.raises(ValueError, match="not both"):
        row_lse(queries, queries, 1.0, causal(4, 4), 2)
