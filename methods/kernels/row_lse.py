"""Log-sum-exp of the attention logits of all queries. Must not know which method needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns, load_rows
from .launch import LOG2_E, ROOMIEST, by_triton, capability, jit, launch, tl, triton, upcast

_BLOCK_ROWS = 256


def row_lse(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    blind: int | None = None,
) -> Tensor:
    """log sum_j exp(scaling * q_i k_j) over the keys j that query i sees, float32 [B, H, L].

    queries [B, H, L, d], keys [B, Hkv, L, d]; mask: bool, broadcastable to [B, 1, L, L], True =
    visible; None = causal. blind: only the last `blind` queries are masked causally and all others
    see every key. -inf where a query sees nothing. The kernel is the forward pass of flash
    attention (arXiv 2205.14135) without values: a tile of queries stays, keys go by, causally only
    up to the diagonal. ValueError for a mask together with blind.
    """
    if mask is not None and blind is not None:
        raise ValueError("row_lse takes a mask or a blind part, not both; put it into the mask.")
    if by_triton(queries, keys):
        return _by_triton(queries, keys, scaling, mask, blind)
    length = keys.shape[2]
    out = torch.empty(queries.shape[:3], dtype=torch.float32, device=keys.device)
    for start in range(0, length, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, length)
        logits = block_logits(queries, keys, scaling, mask, blind, start, stop)
        out[:, :, start:stop] = logits.logsumexp(-1)
    return out


def block_logits(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None,
    blind: int | None,
    start: int,
    stop: int,
) -> Tensor:
    """Logits of the queries from start to stop, float32 [B, H, stop - start, K].

    -inf where a query does not see a key. K is L, or `stop` where no query sees a later key.
    """
    batch, heads, length, dim = queries.shape
    rows, first = stop - start, 0
    position = torch.arange(length, device=keys.device)
    row = position[start:stop, None]
    if blind is not None:
        visible = ((position <= row) | (row < length - blind))[None, None]
    elif mask is not None:
        # One row serves all queries where the mask does not depend on them.
        visible = mask[:, :, start:stop] if mask.shape[2] > 1 else mask
    else:
        # Keys behind the block are left out, and those in front of it are visible.
        keys, first = keys[:, :, :stop], start
        visible = (position[start:stop] <= row)[None, None]
    stacked = (queries[:, :, start:stop].float() * scaling).reshape(batch, keys.shape[1], -1, dim)
    logits = torch.matmul(stacked, keys.float().transpose(2, 3)).view(batch, heads, rows, -1)
    logits[..., first:].masked_fill_(~visible, -torch.inf)
    return logits


def padded(dim: int) -> int:
    """The power of 2 that a head is padded to; products need 16."""
    return max(16, 1 << (dim - 1).bit_length())


def mask_kind(mask: Tensor | None) -> int:
    """What a kernel reads of the mask: 0 nothing, 1 one row for all queries, 2 every row."""
    if mask is None:
        return 0
    return 1 if mask.shape[2] == 1 or mask.stride(2) == 0 else 2


def free_rows(length: int, mask: Tensor | None, blind: int | None) -> int:
    """How many of the first queries see every key as far as the mask lets them."""
    if mask is not None:
        return length
    return 0 if blind is None else max(0, length - blind)


def _config(dtype: torch.dtype, dims: int, capability: int) -> dict[str, int]:
    """Launch parameters for a head of `dims` elements, a power of 2."""
    hopper = capability in ROOMIEST
    if dtype == torch.float32:
        keys, chunk = (64, 32) if hopper else (32, 16)
        sizes = {"BLOCK_ROWS": 64, "BLOCK_KEYS": keys, "CHUNK": min(chunk, dims)}
        return {**sizes, "num_warps": 4, "num_stages": 2}
    keys = 32 if not hopper and dims > 128 else 64
    sizes = {"BLOCK_ROWS": 128, "BLOCK_KEYS": keys, "CHUNK": dims}
    return {**sizes, "num_warps": 8, "num_stages": 3 if hopper and dims <= 128 else 2}


def _by_triton(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor | None, blind: int | None
) -> Tensor:
    batch, heads, length, dim = queries.shape
    if scaling < 0:  # the kernel scales the largest product of a row
        queries, scaling = -queries, -scaling
    dims = padded(dim)
    config = _config(keys.dtype, dims, capability(keys.device))
    seen = None if mask is None else mask.expand(batch, 1, length, length)
    out = torch.empty(batch, heads, length, dtype=torch.float32, device=keys.device)
    launch(
        _row_lse_kernel,
        (batch * heads, triton.cdiv(length, config["BLOCK_ROWS"])),
        queries,
        keys,
        seen,
        out,
        scaling * LOG2_E,
        length,
        free_rows(length, mask, blind),
        dim,
        heads,
        heads // keys.shape[1],
        *queries.stride(),
        *keys.stride(),
        *((0, 0, 0) if seen is None else (seen.stride(0), seen.stride(2), seen.stride(3))),
        DIMS=dims,
        MASK=mask_kind(mask),
        UPCAST=upcast(keys.dtype),
        **config,
    )
    return out


@jit
def products_in_chunks(
    rows,
    row,
    row_inside,
    row_stride,
    row_dim,
    columns,
    column,
    column_inside,
    column_stride,
    column_dim,
    dim,
    CHUNK: tl.constexpr,
):
    """Products [rows, columns] of float32 vectors, of which registers hold only a part at once."""
    products = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, dim, CHUNK):
        left = load_rows(rows, row, row_inside, row_stride, dim - start, row_dim, CHUNK, False)
        right = load_columns(
            columns, column, column_inside, column_stride, dim - start, column_dim, CHUNK, False
        )
        products = tl.dot(left, right, products, input_precision="tf32x3")
        rows += CHUNK * row_dim
        columns += CHUNK * column_dim
    return products


@jit
def _row_lse_kernel(
    queries,
    keys,
    mask,
    out,
    scaling,
    length,
    free,
    dim,
    heads,
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
    DIMS: tl.constexpr,
    MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One tile of queries of one head against the keys, the longest tiles first."""
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_ROWS
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    row = first + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_KEYS)
    q = queries + batch * q_batch + head * q_head
    if CHUNK == DIMS:
        rows = load_rows(q, row, row < length, q_row, dim, q_dim, DIMS, UPCAST)
    k = keys + batch * k_batch + head // group * k_head
    seen = mask
    if MASK == 1:
        seen = mask + batch * m_batch + lane.to(tl.int64) * m_key
    if MASK == 2:
        at = row.to(tl.int64)[:, None] * m_row + lane.to(tl.int64)[None] * m_key
        seen = mask + batch * m_batch + at
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    stop = tl.where(first < free, length, tl.minimum(length, first + BLOCK_ROWS))
    for start in range(0, stop, BLOCK_KEYS):
        key = start + lane
        if CHUNK == DIMS:
            block = load_columns(k, lane, key < length, k_key, dim, k_dim, DIMS, UPCAST)
            logits = tl.dot(rows, block, input_precision="tf32x3")
        else:
            logits = products_in_chunks(
                q,
                row,
                row < length,
                q_row,
                q_dim,
                k,
                lane,
                key < length,
                k_key,
                k_dim,
                dim,
                CHUNK,
            )
        if MASK == 1:
            visible = tl.load(seen, mask=key < length, other=0).to(tl.int1)
            logits = tl.where(visible[None], logits, float("-inf"))
        elif MASK == 2:
            inside = (row < length)[:, None] & (key < length)[None]
            logits = tl.where(
                tl.load(seen, mask=inside, other=0).to(tl.int1), logits, float("-inf")
            )
        else:
            crosses = (start + BLOCK_KEYS > first) & (first + BLOCK_ROWS > free)
            if crosses | (start + BLOCK_KEYS > length):
                visible = (key[None] <= row[:, None]) | (row < free)[:, None]
                logits = tl.where(visible & (key < length)[None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1) * scaling)
        above = tl.where(higher == float("-inf"), 0.0, higher)  # nothing visible so far
        weights = tl.exp2(logits * scaling - above[:, None])
        total = total * tl.exp2(top - above) + tl.sum(weights, 1)
        top = higher
        k += BLOCK_KEYS * k_key
        if MASK != 0:
            seen += BLOCK_KEYS * m_key
    lse = (top + tl.log2(tl.maximum(total, 1e-30))) * 0.6931471805599453
    at = (batch * heads + head) * length + row
    tl.store(out + at, lse, mask=row < length)
