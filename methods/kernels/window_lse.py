"""Log-sum-exp of the attention logits of the last queries. Must not know which method needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns
from .launch import by_triton, jit, launch, tl, triton
from .visible import visible_keys
from .window_rows import load_slots, runs, window_arguments, window_logits, window_options


def window_lse(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None = None, behind: int = 0
) -> Tensor:
    """log sum_j exp(scaling * q_i k_j) over the visible keys j, float32 [B, H, W].

    queries [B, H, W, d] are the last W of the L positions in keys [B, Hkv, L, d] that have `behind`
    more behind them. mask: bool, broadcastable to [B, 1, W, L], True = visible; None = causal. The
    kernel reads each key once for the query heads that share it, in as many runs of keys as keep
    the GPU busy, and then joins what each of them found.
    """
    if by_triton(queries, keys):
        return _by_triton(queries, keys, scaling, mask, behind)
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    stacked = (queries.float() * scaling).reshape(batch, kv_heads, -1, dim)  # [B, Hkv, g * W, d]
    logits = torch.matmul(stacked, keys.float().transpose(2, 3)).view(batch, heads, rows, length)
    visible = visible_keys(rows, length, behind, mask, keys.device)
    return logits.masked_fill_(~visible, -torch.inf).logsumexp(-1)


def _by_triton(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None, behind: int
) -> Tensor:
    batch, heads, rows, _ = queries.shape
    options = window_options(queries, keys, mask, most=256, block=64)
    count = runs(keys, options)
    parts = torch.empty(count, batch, heads, rows, dtype=torch.float32, device=keys.device)
    chunks = triton.cdiv(rows, options["SLOTS"] // options["HEADS"])
    launch(
        _lse_kernel,
        (count, batch * keys.shape[1], chunks),
        *window_arguments(queries, keys, scaling, mask, behind),
        parts,
        **options,
    )
    if count == 1:
        return parts[0]
    lse = torch.empty_like(parts[0])
    launch(
        _join_kernel,
        (triton.cdiv(lse.numel(), 64),),
        parts,
        lse,
        count,
        lse.numel(),
        BLOCK=64,
        RUNS=32,
        num_warps=4,
    )
    return lse


@jit
def _lse_kernel(
    queries, keys, mask, scaling, length, first, rows, dim, kv_heads, group,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_key, k_dim, m_batch, m_row, m_key,
    parts,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr, MASKED: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A run of tiles of keys against rows of every query head that reads them."""
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    queries += batch * q_batch + kv_head * group * q_head
    keys += batch * k_batch + kv_head * k_head
    mask = mask + batch * m_batch if MASKED else mask
    row, member, real, q = load_slots(
        queries, tl.program_id(2) * (SLOTS // HEADS), rows, dim, group, q_head, q_row, q_dim,
        HEADS, SLOTS, DIMS, UPCAST,
    )  # fmt: skip
    top = tl.full([SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([SLOTS], tl.float32)
    each = tl.cdiv(tl.cdiv(length, BLOCK), tl.num_programs(0)) * BLOCK
    begin = tl.program_id(0) * each
    for start in range(begin, tl.minimum(begin + each, length), BLOCK):
        key = start + tl.arange(0, BLOCK)
        k = load_columns(keys, key, key < length, k_key, dim, k_dim, DIMS, UPCAST)
        logits = window_logits(
            q, k, row, real, key, scaling, length, first, mask, m_row, m_key, MASKED, PRECISION
        )
        higher = tl.maximum(top, tl.max(logits, 1))
        above = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - above) + tl.sum(tl.exp2(logits - above[:, None]), 1)
        top = higher
    out = (tl.program_id(0) * (tl.num_programs(1) // kv_heads) + batch) * kv_heads + kv_head
    out = (out * group + member) * rows + row
    tl.store(parts + out, (top + tl.log2(total)) * 0.6931471805599453, mask=real)


@jit
def _join_kernel(parts, lse, runs, count, BLOCK: tl.constexpr, RUNS: tl.constexpr):
    """log sum exp over the first axis of parts [runs, count]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, runs, RUNS):
        run = start + tl.arange(0, RUNS)
        inside = (run < runs)[:, None] & (at < count)[None]
        part = tl.load(parts + run[:, None] * count + at[None], mask=inside, other=float("-inf"))
        higher = tl.maximum(top, tl.max(part, 0))
        above = tl.where(higher == float("-inf"), 0.0, higher)
        scale = 1.4426950408889634
        total = total * tl.exp2((top - above) * scale)
        total += tl.sum(tl.exp2((part - above[None]) * scale), 0)
        top = higher
    tl.store(lse + at, top + tl.log2(total) * 0.6931471805599453, mask=at < count)
