"""Attention to blocks against eager attention with the same mask, token by token, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from harness import sparse
from harness.sparse import attention, blocks

SCALING = 0.3


def drawn(length, heads=4, kv_heads=2, dim=16, value_dim=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = (heads, dim), (kv_heads, dim), (kv_heads, value_dim)
    return [torch.randn(1, count, length, wide, generator=draw) for count, wide in sizes]


def eager(query, key, value, mask):
    """One head and query at a time over the tokens that it sees, float64."""
    heads, length = query.shape[1:3]
    group = heads // key.shape[1]
    output = torch.empty(1, heads, length, value.shape[-1], dtype=torch.float64)
    for head in range(heads):
        keys, values = key[0, head // group].double(), value[0, head // group].double()
        for i in range(length):
            seen = [j for j in range(i + 1) if mask[head][i // 128][j // 128]]
            weights = (SCALING * keys[seen] @ query[0, head, i].double()).softmax(0)
            output[0, head, i] = weights @ values[seen]
    return output


def scattered(heads, length, seed):
    n = blocks.count(length)
    mask = torch.rand(heads, n, n, generator=torch.Generator().manual_seed(seed)) < 0.4
    return blocks.finished(mask, length, 0)


WAYS = {
    "rows": lambda *parts: attention.by_rows(*(each[0] for each in parts[:3]), *parts[3:])[None],
    "flex": attention.by_flex,
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("way", "length"), [("rows", 5), ("rows", 128), ("rows", 300), ("flex", 300)]
)
def test_the_mask_of_dense_attention_equals_sdpa(way, length):
    query, key, value = drawn(length, value_dim=16)
    mask = blocks.causal(4, length, torch.device("cpu"))
    found = WAYS[way](query, key, value, mask, SCALING)
    wanted = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALING, enable_gqa=True
    )
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("way", "length", "heads", "kv_heads"),
    [("rows", 500, 4, 2), ("rows", 384, 2, 2), ("rows", 131, 3, 1), ("flex", 300, 4, 2)],
)
def test_scattered_blocks_equal_eager_attention(way, length, heads, kv_heads):
    query, key, value = drawn(length, heads, kv_heads)
    mask = scattered(heads, length, 1)
    assert length < 200 or float(blocks.share(mask)) < 0.9
    found = WAYS[way](query, key, value, mask, SCALING)
    assert (found - eager(query, key, value, mask.tolist())).abs().max() < 2e-6


def test_what_is_behind_the_prompt_or_not_chosen_is_never_read():
    query, key, value = drawn(500)
    mask = torch.eye(4, dtype=torch.bool).repeat(4, 1, 1)
    wanted = sparse.attend(query, key, value, mask, SCALING)
    key[:, :, :128], value[:, :, :128] = torch.nan, torch.nan
    found = sparse.attend(query, key, value, mask, SCALING)
    assert found[:, :, 128:].equal(wanted[:, :, 128:])
    assert found[:, :, :128].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype):
    query, key, value = (each.to(dtype) for each in drawn(300))
    mask = scattered(4, 300, 2)
    found = sparse.attend(query, key, value, mask, SCALING)
    assert found.dtype == dtype
    wanted = eager(query, key, value, mask.tolist())
    assert (found - wanted).abs().max() < (2e-3 if dtype == torch.float16 else 2e-2)


def test_blocks_as_flex_attention_takes_them_are_those_of_the_mask():
    mask = scattered(3, 700, 3)
    found = attention.block_mask(mask)
    dense = found.to_dense()[0].bool()
    assert dense.equal(mask)
    assert found.full_kv_num_blocks[0].equal(mask.sum(-1, dtype=torch.int32) - 1)


@pytest.mark.slow
def test_compiled_flex_attention_equals_the_rows():
    query, key, value = drawn(500, dim=16, value_dim=16)
    mask = scattered(4, 500, 1)
    run = torch.compile(attention.flex_attention, dynamic=True)
    wide = [torch.nn.functional.pad(each, (0, 0, 0, 12)) for each in (query, key, value)]
    found = run(*wide, block_mask=attention.block_mask(mask), scale=SCALING, enable_gqa=True)
    wanted = sparse.attend(query, key, value, mask, SCALING)
    assert (found[:, :, :500] - wanted).abs().max() < 2e-6
