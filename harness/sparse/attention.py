"""Causal attention to the blocks of a mask.

Where the kernels run it is torch's flex_attention, compiled on a CUDA device; else plain torch that
attends row of blocks by row of blocks, since flex_attention computes every pair unless it is
compiled, and a CPU would compile it for minutes. Torch only; it must not know patterns or models.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from harness.sparse.blocks import BLOCK
from methods.kernels import by_triton


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Outputs [B, H, L, dv] of one prompt, B = 1.

    query [B, H, L, d], key [B, Hkv, L, d], value [B, Hkv, L, dv]; mask bool [H, n, n] of blocks,
    lower triangular with its diagonal. `methods.kernels.using` chooses how.
    """
    if by_triton(query, key, value):
        return by_flex(query, key, value, mask, scaling)
    return by_rows(query[0], key[0], value[0], mask, scaling)[None]


def by_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The same in plain torch for query [H, L, d]: a row of blocks of a head at a time."""
    heads, length, _ = query.shape
    n, group = mask.shape[-1], heads // key.shape[0]
    keys, values = _in_blocks(key, n), _in_blocks(value, n)
    hidden = query.new_zeros(BLOCK, n * BLOCK)  # of a row that ends with its own block
    hidden[:, -BLOCK:] = torch.full_like(hidden[:, -BLOCK:], -torch.inf).triu(1)
    outputs = query.new_empty(heads, length, value.shape[-1])
    known = mask.cpu()
    for head in range(heads):
        for row in range(n):
            own = slice(row * BLOCK, min(length, (row + 1) * BLOCK))
            taken = known[head, row].nonzero()[:, 0]
            rows, first = own.stop - own.start, (n - len(taken)) * BLOCK
            seen = (len(taken) - 1) * BLOCK + rows
            outputs[head, own] = scaled_dot_product_attention(
                query[None, None, head, own],
                keys[head // group, taken].flatten(0, 1)[None, None, :seen],
                values[head // group, taken].flatten(0, 1)[None, None, :seen],
                attn_mask=hidden[:rows, first : first + seen],
                scale=scaling,
            )[0, 0]
    return outputs


def _in_blocks(vectors: Tensor, n: int) -> Tensor:
    """Vectors [Hkv, L, d] as [Hkv, n, BLOCK, d]; what is behind the last is 0."""
    return pad(vectors, (0, 0, 0, n * BLOCK - vectors.shape[1])).unflatten(1, (n, BLOCK))


def by_flex(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The same by flex_attention, whose lengths are whole blocks; arguments as of `attend`."""
    length, whole = query.shape[2], mask.shape[-1] * BLOCK
    parts = (pad(each, (0, 0, 0, whole - length)) for each in (query, key, value))
    output: Tensor = _runner(query.device)(
        *parts,
        block_mask=block_mask(mask),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[:, :, :length]


def _runner(device: torch.device) -> Any:
    return _compiled() if device.type == "cuda" else flex_attention


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """One kernel for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


def block_mask(mask: Tensor) -> BlockMask:
    """flex_attention's form of a mask [H, n, n]: blocks on the diagonal are partly computed, others
    whole.
    """
    n = mask.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=mask.device)
    part, full = (_listed(each) for each in (mask & diagonal, mask & ~diagonal))

    def sees(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return mask[head, row // BLOCK, column // BLOCK] & (row >= column)

    return BlockMask.from_kv_blocks(
        *part, *full, BLOCK_SIZE=BLOCK, mask_mod=sees, compute_q_blocks=False
    )


def _listed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, int32 [1, H, n], and which, first [1, H, n, n]."""
    numbers = mask.sum(-1, dtype=torch.int32)
    order = mask.int().sort(dim=-1, descending=True, stable=True).indices
    return numbers[None], order.int()[None].contiguous()
