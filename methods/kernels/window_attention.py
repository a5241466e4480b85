"""Attention rows of the last queries over all keys. Must not know which method reads them."""

import torch
from torch import Tensor


def window_attention(queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """softmax(scaling * queries keys^T), float32 [B, H, W, L].

    queries [B, H, W, d] are the last W of the L positions in keys [B, Hkv, L, d]. mask: bool,
    broadcastable to [B, 1, W, L], True = visible; None = causal. Keys are never expanded to H
    heads.
    """
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    stacked = (queries.float() * scaling).reshape(batch, kv_heads, -1, dim)  # [B, Hkv, g * W, d]
    logits = torch.matmul(stacked, keys.float().transpose(2, 3)).view(batch, heads, rows, length)
    if mask is None:
        # Only the last W x W block holds keys in the future of these queries.
        future = torch.ones(rows, rows, dtype=torch.bool, device=keys.device).triu_(1)
        logits[..., length - rows :].masked_fill_(future, -torch.inf)
    else:
        logits.masked_fill_(~mask, -torch.inf)
    return torch.softmax(logits, dim=-1)
