"""Attention that keys collect from the last queries, and the output it makes.

Must not know which method reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import load_columns, load_rows
from .launch import LOG2_E, by_triton, jit, launch, tl, upcast
from .window_attention import window_attention
from .window_lse import window_lse
from .window_rows import (
    load_slots,
    padded,
    runs,
    window_arguments,
    window_logits,
    window_options,
)


def window_columns(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    weights: Tensor | None,
    mask: Tensor | None = None,
    behind: int = 0,
    lse: Tensor | None = None,
    values: Tensor | None = None,
    past: int | None = None,
    attention: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(columns, outputs): sum_i weights_i * softmax_ij, float32 [B, H, L], and its product with the
    values of the first `past` keys (None = all), float32 [B, H, dv], or None without values.

    queries [B, H, W, d] are the last W of the L positions in keys [B, Hkv, L, d] that have `behind`
    more behind them; weights float32 [W], None = ones; values [B, Hkv, L, dv]. mask: bool,
    broadcastable to [B, 1, W, L], True = visible, at least one key a row; None = causal. lse
    [B, H, W]: `window_lse` of the same, where it is known. Keys that no row sees collect 0. The
    kernel reads keys and values once for the query heads that share them and writes no rows;
    plain torch takes them from `attention` [B, H, W, L] where they are at hand.
    """
    if not by_triton(queries, keys, *([] if values is None else [values])):
        if attention is None:
            attention = window_attention(queries, keys, scaling, mask, behind)
        columns = attention.sum(2) if weights is None else torch.matmul(weights, attention)
        return columns, None if values is None else _outputs(columns, values, past)
    if lse is None:
        lse = window_lse(queries, keys, scaling, mask, behind)
    return _by_triton(queries, keys, scaling, weights, mask, behind, lse, values, past)


def _outputs(columns: Tensor, values: Tensor, past: int | None) -> Tensor:
    """columns [B, H, L] times values [B, Hkv, L, dv] of the first `past`: [B, H, dv]."""
    batch, kv_heads, _, dim = values.shape
    values = values[:, :, :past]
    group = columns.shape[1] // kv_heads
    stacked = columns[..., :past].reshape(batch, kv_heads, group, values.shape[2])
    return torch.matmul(stacked, values.float()).view(batch, kv_heads * group, dim)


def _by_triton(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    weights: Tensor | None,
    mask: Tensor | None,
    behind: int,
    lse: Tensor,
    values: Tensor | None,
    past: int | None,
) -> tuple[Tensor, Tensor | None]:
    batch, heads, rows, _ = queries.shape
    length = keys.shape[2]
    wide = 0 if values is None else padded(values.shape[3])
    options = window_options(queries, keys, mask, most=256, block=32, dim=wide)
    count = runs(keys, options)
    columns = torch.empty(batch, heads, length, dtype=torch.float32, device=keys.device)
    parts = None
    if values is not None:
        shape = (count, batch, heads, values.shape[3])
        parts = torch.empty(shape, dtype=torch.float32, device=keys.device)
    past = length if past is None else min(past, length)
    launch(
        _columns_kernel,
        (count, batch * keys.shape[1]),
        *window_arguments(queries, keys, scaling, mask, behind),
        lse.contiguous(),
        None if weights is None else weights.contiguous(),
        columns,
        *_value_arguments(values, parts, past),
        RESIDENT=rows * options["HEADS"] <= options["SLOTS"],
        LOG2_E=LOG2_E,
        **options,
        **_value_options(values),
    )
    if parts is None:
        return columns, None
    return columns, parts[0] if count == 1 else parts.sum(0)


def _value_arguments(values: Tensor | None, parts: Tensor | None, past: int) -> tuple[Any, ...]:
    if values is None:
        return (None, None, 0, 0, 0, 0, 0, 0)
    return (values, parts, past, values.shape[3], *values.stride())


def _value_options(values: Tensor | None) -> dict[str, Any]:
    dtype = torch.float32 if values is None else values.dtype
    return {
        "VALUES": 0 if values is None else padded(values.shape[3]),
        "SPLIT": dtype == torch.bfloat16 and not upcast(dtype),
    }


@jit
def _columns_kernel(
    queries, keys, mask, scaling, length, first, rows, dim, kv_heads, group,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_key, k_dim, m_batch, m_row, m_key,
    lse, weights, columns, values, parts, past, v_width, v_batch, v_head, v_key, v_dim,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr, MASKED: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, RESIDENT: tl.constexpr,
    LOG2_E: tl.constexpr, VALUES: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A run of tiles of keys, and of values, against all rows of every query head."""
    PACK: tl.constexpr = 16 if HEADS < 16 else HEADS
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    heads = (batch * kv_heads + kv_head) * group  # the first of them, over the batch
    queries += batch * q_batch + kv_head * group * q_head
    keys += batch * k_batch + kv_head * k_head
    mask = mask + batch * m_batch if MASKED else mask
    lse += heads * rows
    member = tl.arange(0, HEADS)
    if RESIDENT:
        row, real, q, total, weight = _load(
            queries, lse, weights, 0, rows, dim, group, q_head, q_row, q_dim,
            HEADS, SLOTS, DIMS, UPCAST, LOG2_E,
        )  # fmt: skip
    if VALUES:
        values += batch * v_batch + kv_head * v_head
        outputs = tl.zeros([PACK, VALUES], tl.float32)
    each = tl.cdiv(tl.cdiv(length, BLOCK), tl.num_programs(0)) * BLOCK
    begin = tl.program_id(0) * each
    for tile in range(begin, tl.minimum(begin + each, length), BLOCK):
        key = tile + tl.arange(0, BLOCK)
        k = load_columns(keys, key, key < length, k_key, dim, k_dim, DIMS, UPCAST)
        if RESIDENT:
            logits = window_logits(
                q, k, row, real, key, scaling, length, first, mask, m_row, m_key, MASKED, PRECISION
            )
            packed = _collect(logits, total, weight, SLOTS, PACK, BLOCK)
        else:
            packed = tl.zeros([PACK, BLOCK], tl.float32)
            for start in range(0, rows, SLOTS // HEADS):
                row, real, q, total, weight = _load(
                    queries, lse, weights, start, rows, dim, group, q_head, q_row, q_dim,
                    HEADS, SLOTS, DIMS, UPCAST, LOG2_E,
                )  # fmt: skip
                logits = window_logits(
                    q,
                    k,
                    row,
                    real,
                    key,
                    scaling,
                    length,
                    first,
                    mask,
                    m_row,
                    m_key,
                    MASKED,
                    PRECISION,
                )
                packed += _collect(logits, total, weight, SLOTS, PACK, BLOCK)
        collected = tl.sum(tl.reshape(packed, [PACK // HEADS, HEADS, BLOCK]), 0)
        at = columns + (heads + member)[:, None] * length + key[None]
        tl.store(at, collected, mask=(member < group)[:, None] & (key < length)[None])
        if VALUES:
            packed = tl.where((key < past)[None], packed, 0.0)
            v = load_rows(values, key, key < past, v_key, v_width, v_dim, VALUES, UPCAST)
            if SPLIT:  # a float32 is two bfloat16 to 2^-17 and keeps its range
                high = packed.to(tl.bfloat16)
                low = (packed - high.to(tl.float32)).to(tl.bfloat16)
                outputs = tl.dot(low, v, outputs)
                outputs = tl.dot(high, v, outputs)
            else:
                outputs = tl.dot(packed, v.to(tl.float32), outputs, input_precision="tf32x3")
    if VALUES:
        width = tl.arange(0, VALUES)
        made = tl.sum(tl.reshape(outputs, [PACK // HEADS, HEADS, VALUES]), 0)
        out = tl.program_id(0) * (tl.num_programs(1) * group).to(tl.int64) + heads + member
        at = parts + out[:, None] * v_width + width[None]
        tl.store(at, made, mask=(member < group)[:, None] & (width < v_width)[None])


@jit
def _load(
    queries, lse, weights, start, rows, dim, group, q_head, q_row, q_dim,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr, UPCAST: tl.constexpr,
    LOG2_E: tl.constexpr,
):  # fmt: skip
    """Rows `start` and on: (row, whether it exists, query, log2-sum-exp2, weight), [SLOTS, ...]."""
    row, member, real, q = load_slots(
        queries, start, rows, dim, group, q_head, q_row, q_dim, HEADS, SLOTS, DIMS, UPCAST
    )
    total = tl.load(lse + member * rows + row, mask=real, other=0.0) * LOG2_E
    if weights is None:
        weight = tl.where(real, 1.0, 0.0)
    else:
        weight = tl.load(weights + row, mask=real, other=0.0)
    return row, real, q, total, weight


@jit
def _collect(logits, total, weight, SLOTS: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr):
    """Weighted attention [SLOTS, BLOCK] summed over every PACK-th slot, those of equal head:
    [PACK, BLOCK]. Where PACK is a multiple of HEADS, heads are left in PACK / HEADS parts."""
    attention = tl.exp2(logits - total[:, None]) * weight[:, None]
    return tl.sum(tl.reshape(attention, [SLOTS // PACK, PACK, BLOCK]), 0)
