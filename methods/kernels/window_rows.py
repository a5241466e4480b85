"""A window's queries as the rows of one matrix: what the kernels of a window share.

The query heads of a KV head lie side by side in it, so that a tile of keys is multiplied once by
all of them and the products are large enough for tensor cores. Must not know what is made of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .launch import LOG2_E, capability, jit, processors, tl, triton, upcast

_ROOMY = (80, 87, 90, 100, 103)  # compute capabilities with 160 KiB of shared memory a block


def window_arguments(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None, behind: int
) -> tuple[Any, ...]:
    """The arguments that every kernel of a window begins with."""
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    seen = None
    if mask is not None:  # rows of a length that wide loads divide: others take registers
        seen = pad(mask.expand(batch, 1, rows, length), (0, -length % 16))
    return (
        *(queries, keys, seen, scaling * LOG2_E, length, length - behind - rows, rows, dim),
        *(kv_heads, heads // kv_heads, *queries.stride(), *keys.stride()),
        *((0, 0, 0) if seen is None else (seen.stride(0), seen.stride(2), seen.stride(3))),
    )


def window_options(
    queries: Tensor, keys: Tensor, mask: Tensor | None, most: int, block: int, dim: int = 0
) -> dict[str, Any]:
    """What the kernels are compiled for: SLOTS rows of the matrix and BLOCK keys at a time.

    Every row of the window takes HEADS slots, one for each query head of a KV head. most, block:
    the most slots, and the keys, for half precision vectors of up to 128 elements; others get what
    fits. dim: of other vectors that a kernel holds.
    """
    dims = padded(keys.shape[3])
    wide = max(dims, dim)
    ieee = False
    if keys.dtype == torch.float32:  # three products of tf32 hold six copies of their operands
        most, block, stages, ieee = 16, 32, 1, wide > 128
    elif wide > 128:
        most, block, stages = 128, (32 if mask is None else 16), 2
    else:
        # A mask takes registers: an address for each logit.
        large = capability(keys.device) in _ROOMY and mask is None
        most, stages = min(most, 256 if large else 128), 2
    heads = triton.next_power_of_2(queries.shape[1] // keys.shape[1])
    slots = max(16, heads, min(most, heads * triton.next_power_of_2(queries.shape[2])))
    if slots <= 64 and wide <= 128 and keys.dtype != torch.float32:
        block = max(block, 64)
    return {
        "HEADS": heads,
        "SLOTS": slots,
        "DIMS": dims,
        "MASKED": mask is not None,
        "UPCAST": upcast(keys.dtype),
        "PRECISION": "ieee" if ieee else "tf32x3",
        "BLOCK": block,
        "num_warps": 8 if slots > 64 or ieee or (most == 16 and mask is not None) else 4,
        "num_stages": stages,
    }


def padded(dim: int) -> int:
    """Elements of a vector as a kernel holds it."""
    return max(16, triton.next_power_of_2(dim))


def runs(keys: Tensor, options: dict[str, Any]) -> int:
    """In how many runs of tiles to cut the L keys [B, Hkv, L, d] of a head.

    As many as keep every multiprocessor busy, with 2 programs that fill it or 4 smaller ones.
    """
    batch, kv_heads, length, _ = keys.shape
    each = 2 if options["SLOTS"] > 64 else 4
    tiles = triton.cdiv(length, options["BLOCK"])
    wanted = max(1, processors(keys.device) * each // (batch * kv_heads))
    return triton.cdiv(tiles, triton.cdiv(tiles, wanted))


@jit
def load_slots(
    queries, start, rows, dim, group, q_head, q_row, q_dim,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows `start` and on of all heads: (row, head within the group, whether it exists) [SLOTS],
    and the queries [SLOTS, DIMS]."""
    slot = tl.arange(0, SLOTS)
    row = start + slot // HEADS
    member = slot % HEADS
    real = (row < rows) & (member < group)
    d = tl.arange(0, DIMS)
    at = row.to(tl.int64) * q_row + member.to(tl.int64) * q_head
    at = queries + at[:, None] + d[None] * q_dim
    q = tl.load(at, mask=real[:, None] & (d < dim)[None], other=0.0)
    return row, member, real, q.to(tl.float32) if UPCAST else q


@jit
def window_logits(
    q, k, row, real, key, scaling, length, first, mask, m_row, m_key,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scaling * q k, float32 [SLOTS, N]; -inf where a row does not see a key or does not exist."""
    logits = tl.dot(q, k, input_precision=PRECISION) * scaling
    if MASKED:
        inside = real[:, None] & (key < length)[None]
        at = row[:, None] * m_row + key[None] * m_key  # W * L: 32 bits are enough
        visible = inside & tl.load(mask + at, mask=inside, other=0).to(tl.int1)
    else:
        visible = key[None] <= tl.where(real, first + row, -1)[:, None]
    return tl.where(visible, logits, float("-inf"))
