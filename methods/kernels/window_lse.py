"""Log-sum-exp of the attention logits of the last queries. Must not know which method needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns, load_rows
from .launch import LOG2_E, by_triton, capability, jit, launch, tl, triton, upcast
from .visible import visible_keys


def window_lse(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None = None, behind: int = 0
) -> Tensor:
    """log sum_j exp(scaling * q_i k_j) over the visible keys j, float32 [B, H, W].

    queries [B, H, W, d] are the last W of the L positions in keys [B, Hkv, L, d] that have `behind`
    more behind them. mask: bool, broadcastable to [B, 1, W, L], True = visible; None = causal. The
    kernel reads each key once for the query heads that share it and writes one number for each row
    and tile of keys.
    """
    if by_triton(queries, keys):
        return _by_triton(queries, keys, scaling, mask, behind)
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    stacked = (queries.float() * scaling).reshape(batch, kv_heads, -1, dim)  # [B, Hkv, g * W, d]
    logits = torch.matmul(stacked, keys.float().transpose(2, 3)).view(batch, heads, rows, length)
    visible = visible_keys(rows, length, behind, mask, keys.device)
    return logits.masked_fill_(~visible, -torch.inf).logsumexp(-1)


def _config(dtype: torch.dtype, dims: int, capability: int) -> dict[str, int]:
    """Launch parameters for a head of `dims` elements, a power of 2."""
    wide = dims * dtype.itemsize > 512
    return {"BLOCK": 64 if wide else 128, "num_warps": 4, "num_stages": 2}


def _by_triton(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None, behind: int
) -> Tensor:
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    dims = max(16, triton.next_power_of_2(dim))
    config = _config(keys.dtype, dims, capability(keys.device))
    tiles = triton.cdiv(length, config["BLOCK"])
    parts = torch.empty(tiles, batch, heads, rows, dtype=torch.float32, device=keys.device)
    seen = None if mask is None else mask.expand(batch, 1, rows, length)
    launch(
        _lse_kernel,
        (tiles, batch * kv_heads),
        queries,
        keys,
        seen,
        parts,
        scaling * LOG2_E,
        length,
        length - behind - rows,
        rows,
        dim,
        kv_heads,
        heads // kv_heads,
        *queries.stride(),
        *keys.stride(),
        *((0, 0, 0) if seen is None else (seen.stride(0), seen.stride(2), seen.stride(3))),
        ROWS=max(16, triton.next_power_of_2(rows)),
        DIMS=dims,
        MASKED=seen is not None,
        UPCAST=upcast(keys.dtype),
        **config,
    )
    return parts.logsumexp(0)


@jit
def _lse_kernel(
    queries,
    keys,
    mask,
    parts,
    scaling,
    length,
    first,
    rows,
    dim,
    kv_heads,
    group,
    q_batch,
    q_head,
    q_row,
    q_dim,
    k_batch,
    k_head,
    k_key,
    k_dim,
    m_batch,
    m_row,
    m_key,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of keys against the rows of every query head that reads it, keys along axis 0."""
    tile = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(1) % kv_heads
    key = tile * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    k = keys + batch * k_batch + kv_head * k_head
    k = load_rows(k, key, key < length, k_key, dim, k_dim, DIMS, UPCAST)
    visible = (key < length)[:, None] & (row < rows)[None]
    if MASKED:
        at = mask + batch * m_batch + key[:, None] * m_key + row[None] * m_row
        visible = visible & tl.load(at, mask=visible, other=0).to(tl.int1)
    else:
        visible = visible & (key[:, None] <= first + row[None])
    for member in range(group):
        head = kv_head * group + member
        q = queries + batch * q_batch + head * q_head
        q = load_columns(q, row, row < rows, q_row, dim, q_dim, DIMS, UPCAST)
        logits = tl.dot(k, q, input_precision="tf32x3") * scaling
        logits = tl.where(visible, logits, float("-inf"))
        top = tl.max(logits, 0)
        above = tl.where(top == float("-inf"), 0.0, top)
        total = top + tl.log2(tl.maximum(tl.sum(tl.exp2(logits - above[None]), 0), 1.0))
        out = (tile * tl.num_programs(1) // kv_heads + batch) * kv_heads * group + head
        tl.store(parts + out * rows + row, total * 0.6931471805599453, mask=row < rows)
