"""Attention rows of the last queries over all keys. Must not know which method reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns
from .launch import LOG2_E, by_triton, jit, launch, tl, triton
from .visible import visible_keys
from .window_lse import window_lse
from .window_rows import load_slots, window_arguments, window_logits, window_options


def window_attention(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None,
    behind: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """softmax(scaling * queries keys^T), float32 [B, H, W, L].

    queries [B, H, W, d] are the last W of the L positions in keys [B, Hkv, L, d] that have `behind`
    more behind them. mask: bool, broadcastable to [B, 1, W, L], True = visible, at least one key a
    row; None = causal. lse [B, H, W]: `window_lse` of the same, where it is known; it saves the
    kernel a pass over the keys. Keys are never expanded to H heads.
    """
    if by_triton(queries, keys):
        if lse is None:
            lse = window_lse(queries, keys, scaling, mask, behind)
        return _by_triton(queries, keys, scaling, mask, behind, lse)
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    stacked = (queries.float() * scaling).reshape(batch, kv_heads, -1, dim)  # [B, Hkv, g * W, d]
    logits = torch.matmul(stacked, keys.float().transpose(2, 3)).view(batch, heads, rows, length)
    if mask is None and behind == 0:
        # Only the last W x W block holds keys in the future of these queries.
        future = torch.ones(rows, rows, dtype=torch.bool, device=keys.device).triu_(1)
        logits[..., length - rows :].masked_fill_(future, -torch.inf)
    else:
        visible = visible_keys(rows, length, behind, mask, keys.device)
        logits.masked_fill_(~visible, -torch.inf)
    return torch.softmax(logits, dim=-1)


def _by_triton(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None, behind: int, lse: Tensor
) -> Tensor:
    batch, heads, rows, _ = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    options = window_options(queries, keys, mask, most=128, block=128)
    out = torch.empty(batch, heads, rows, length, dtype=torch.float32, device=keys.device)
    launch(
        _attention_kernel,
        (triton.cdiv(length, options["BLOCK"]), batch * kv_heads),
        *window_arguments(queries, keys, scaling, mask, behind),
        lse.contiguous(),
        out,
        LOG2_E=LOG2_E,
        **options,
    )
    return out


@jit
def _attention_kernel(
    queries, keys, mask, scaling, length, first, rows, dim, kv_heads, group,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_key, k_dim, m_batch, m_row, m_key,
    lse, out,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr, MASKED: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    """One tile of keys against all rows of every query head that reads it."""
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    queries += batch * q_batch + kv_head * group * q_head
    keys += batch * k_batch + kv_head * k_head
    mask = mask + batch * m_batch if MASKED else mask
    key = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = load_columns(keys, key, key < length, k_key, dim, k_dim, DIMS, UPCAST)
    for start in range(0, rows, SLOTS // HEADS):
        row, member, real, q = load_slots(
            queries, start, rows, dim, group, q_head, q_row, q_dim, HEADS, SLOTS, DIMS, UPCAST
        )
        logits = window_logits(
            q, k, row, real, key, scaling, length, first, mask, m_row, m_key, MASKED, PRECISION
        )
        line = ((batch * kv_heads + kv_head) * group + member) * rows + row
        total = tl.load(lse + line, mask=real, other=0.0) * LOG2_E
        at = out + line[:, None] * length + key[None]
        tl.store(at, tl.exp2(logits - total[:, None]), mask=real[:, None] & (key < length)[None])
