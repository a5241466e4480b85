"""Attention that each key collects from all queries. Must not know which method reads it."""

import torch
from torch import Tensor

from .window_attention import window_attention

_BLOCK_ROWS = 256


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    blind: int | None = None,
    block_rows: int = _BLOCK_ROWS,
) -> Tensor:
    """Sum over all L queries of their attention to each key, float32 [B, H, L].

    queries [B, H, L, d], keys [B, Hkv, L, d]; mask: bool, broadcastable to [B, 1, L, L], None =
    causal. blind: only the last `blind` queries are masked causally and all others see every key,
    as in the released code of ReST-KV. Queries go by in blocks, so that no L x L tensor exists.
    """
    length = keys.shape[2]
    total = torch.zeros(*queries.shape[:2], length, dtype=torch.float32, device=keys.device)
    for start in range(0, length, block_rows):
        stop = min(start + block_rows, length)
        block = queries[:, :, start:stop]
        if blind is not None:
            position = torch.arange(length, device=keys.device)
            row = position[start:stop, None]
            visible = (position <= row) | (row < length - blind)
            total += window_attention(block, keys, scaling, visible[None, None]).sum(2)
        elif mask is not None:
            # One row serves all queries where the mask does not depend on them.
            visible = mask[:, :, start:stop] if mask.shape[2] > 1 else mask
            total += window_attention(block, keys, scaling, visible).sum(2)
        else:
            # Keys behind the block are invisible to it: leave them out instead of masking them.
            total[..., :stop] += window_attention(block, keys[:, :, :stop], scaling, None).sum(2)
    return total
