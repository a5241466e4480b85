"""Attention that each key collects from all queries. Must not know which method reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns, load_rows
from .launch import (
    LOG2_E,
    ROOMIEST,
    by_triton,
    capability,
    jit,
    launch,
    processors,
    tl,
    triton,
    upcast,
)
from .row_lse import block_logits, free_rows, mask_kind, padded, products_in_chunks, row_lse

_BLOCK_ROWS = 256
_FEWEST, _MOST = 32, 128  # the same on a CPU
_CACHED = 1 << 18  # float32 elements that a CPU keeps near while they are read again: 1 MiB
_FEWEST_STEPS = 4  # tiles of queries that are worth a program of their own


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    blind: int | None = None,
    block_rows: int | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Sum over all L queries of their attention to each key, float32 [B, H, L].

    queries [B, H, L, d], keys [B, Hkv, L, d]; mask: bool, broadcastable to [B, 1, L, L], None =
    causal. blind: only the last `blind` queries are masked causally and all others see every key,
    as in the released code of ReST-KV. lse: what `row_lse` gives, for callers that have it.

    Plain torch takes `block_rows` queries at a time; None: as many as suit the device. The kernel
    keeps a tile of keys and lets the queries go by that see it, in O(H L) memory and, causally,
    half the FLOPs of flash attention; without lse it computes that first, at the same price. There,
    and with lse, a query that sees nothing adds nothing. ValueError for a mask together with blind,
    and for an lse of another shape.
    """
    if mask is not None and blind is not None:
        raise ValueError("column_sums takes a mask or a blind part, not both; use the mask.")
    if lse is not None and lse.shape != queries.shape[:3]:
        raise ValueError(
            f"column_sums needs an lse of {tuple(queries.shape[:3])}, not {tuple(lse.shape)}; take "
            "it from row_lse."
        )
    if by_triton(queries, keys):
        if lse is None:
            lse = row_lse(queries, keys, scaling, mask, blind)
        return _by_triton(queries, keys, scaling, mask, blind, lse)
    if keys.is_cuda:
        return _by_blocks(queries, keys, scaling, mask, blind, block_rows or _BLOCK_ROWS, lse)
    # A KV head at a time, so that a block of logits stays in the cache until it is summed.
    group, length = queries.shape[1] // keys.shape[1], keys.shape[2]
    rows = block_rows or min(_MOST, max(_FEWEST, _CACHED // (group * length)))
    pieces = [
        _by_blocks(own, key, scaling, mask, blind, rows, sums)
        for own, key, sums in zip(
            queries.split(group, 1),
            keys.split(1, 1),
            [None] * keys.shape[1] if lse is None else lse.split(group, 1),
            strict=True,
        )
    ]
    return torch.cat(pieces, 1)


def _by_blocks(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None,
    blind: int | None,
    block_rows: int,
    lse: Tensor | None,
) -> Tensor:
    length = keys.shape[2]
    total = torch.zeros(*queries.shape[:2], length, dtype=torch.float32, device=keys.device)
    for start in range(0, length, block_rows):
        stop = min(start + block_rows, length)
        logits = block_logits(queries, keys, scaling, mask, blind, start, stop)
        if lse is None:
            weights = torch.softmax(logits, dim=-1)
        else:
            hidden = logits == -torch.inf
            logits -= lse[:, :, start:stop, None]
            weights = logits.exp_().masked_fill_(hidden, 0.0)
        total[..., : logits.shape[-1]] += weights.sum(2)
    return total


def causal_flops(batch: int, heads: int, length: int, dim: int, dtype: torch.dtype) -> int:
    """FLOPs of the products in the kernel's loops, for causal queries with lse, on an H100.

    Whole tiles, with the padding of a head and with what the mask then throws away.
    """
    config = _config(dtype, padded(dim), 90)
    keys, rows, chunk = config["BLOCK_KEYS"], config["BLOCK_ROWS"], config["CHUNK"]
    tiles = -(-length // rows)
    steps = sum(tiles - start // rows for start in range(0, length, keys))
    return batch * heads * steps * 2 * keys * rows * (-(-dim // chunk) * chunk)


def _config(dtype: torch.dtype, dims: int, capability: int, mask: int = 0) -> dict[str, int]:
    """Launch parameters for a head of `dims` elements, a power of 2; mask: `mask_kind`."""
    hopper = capability in ROOMIEST
    if dtype == torch.float32:
        keys, chunk = (64, 32) if hopper else (32, 16)
        sizes = {"BLOCK_KEYS": keys, "BLOCK_ROWS": 64, "CHUNK": min(chunk, dims)}
        return {**sizes, "num_warps": 4, "num_stages": 2}
    if not hopper and dims > 128:
        sizes = {"BLOCK_KEYS": 64, "BLOCK_ROWS": 64, "CHUNK": dims}
        return {**sizes, "num_warps": 4, "num_stages": 1}
    sizes = {"BLOCK_KEYS": 128, "BLOCK_ROWS": 64, "CHUNK": dims, "num_warps": 8}
    if not hopper or dims > 128 or mask == 2:
        return {**sizes, "num_stages": 2}
    # So that two programs share a processor, one's products beside the other's exponentials.
    registers = {} if torch.version.hip else {"maxnreg": 128}
    return {**sizes, "num_stages": 3, **registers}


def _division(
    batch: int, heads: int, group: int, tiles: int, causal: bool, slots: int
) -> tuple[int, int]:
    """How many query heads a program takes, and over how many programs its queries are split.

    As few programs as leave none of the `slots` of a GPU idle: each may go past as many of the
    `tiles` of queries as all of them together would on average.
    """
    every = batch * heads * tiles * (tiles + 1) // 2 if causal else batch * heads * tiles * tiles
    steps = max(_FEWEST_STEPS, every // slots)
    members = min(group, max(1, steps // tiles))
    return members, -(-tiles // steps) if members == 1 else 1


def _by_triton(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    mask: Tensor | None,
    blind: int | None,
    lse: Tensor,
) -> Tensor:
    batch, heads, length, dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    dims = padded(dim)
    config = _config(keys.dtype, dims, capability(keys.device), mask_kind(mask))
    tiles = triton.cdiv(length, config["BLOCK_ROWS"])
    free = free_rows(length, mask, blind)
    slots = 2 * processors(keys.device)
    members, splits = _division(batch, heads, group, tiles, free == 0, slots)
    shares = triton.cdiv(group, members)
    seen = None if mask is None else mask.expand(batch, 1, length, length)
    parts = torch.empty(splits, batch, heads, length, dtype=torch.float32, device=keys.device)
    launch(
        _column_kernel,
        (batch * kv_heads * shares * splits, triton.cdiv(length, config["BLOCK_KEYS"])),
        queries,
        keys,
        seen,
        lse,
        parts,
        scaling * LOG2_E,
        length,
        free,
        dim,
        kv_heads,
        group,
        members,
        shares,
        splits,
        *queries.stride(),
        *keys.stride(),
        *((0, 0, 0) if seen is None else (seen.stride(0), seen.stride(2), seen.stride(3))),
        *lse.stride(),
        *parts.stride()[:2],
        DIMS=dims,
        MASK=mask_kind(mask),
        UPCAST=upcast(keys.dtype),
        **config,
    )
    return parts[0] if splits == 1 else parts.sum(0)


@jit(varying=("members", "shares", "splits", "free"))
def _column_kernel(
    queries,
    keys,
    mask,
    lse,
    parts,
    scaling,
    length,
    free,
    dim,
    kv_heads,
    group,
    members,
    shares,
    splits,
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
    l_batch,
    l_head,
    l_row,
    p_split,
    p_batch,
    DIMS: tl.constexpr,
    MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One tile of keys against the queries that see it, of some heads; the longest tiles first."""
    first = tl.program_id(1) * BLOCK_KEYS
    unit = tl.program_id(0)
    split = unit % splits
    share = unit // splits % shares
    kv_head = (unit // splits // shares % kv_heads).to(tl.int64)
    batch = (unit // splits // shares // kv_heads).to(tl.int64)
    lane = tl.arange(0, BLOCK_ROWS)
    key = first + tl.arange(0, BLOCK_KEYS)
    k = keys + batch * k_batch + kv_head * k_head
    if CHUNK == DIMS:
        block = load_columns(k, key, key < length, k_key, dim, k_dim, DIMS, UPCAST)
    seen = mask
    if MASK != 0:
        seen = mask + batch * m_batch
    # Tiles of queries that see every key, then those from the diagonal on.
    open_tiles = tl.cdiv(free, BLOCK_ROWS)
    diagonal = tl.maximum(open_tiles, first // BLOCK_ROWS)
    steps = open_tiles + tl.cdiv(length, BLOCK_ROWS) - diagonal
    begin = steps * split // splits
    end = steps * (split + 1) // splits
    for member in range(share * members, tl.minimum(group, share * members + members)):
        head = kv_head * group + member
        q = queries + batch * q_batch + head * q_head
        sums = lse + batch * l_batch + head * l_head
        # Summed over its rows only after the loop, which then exchanges nothing between threads.
        total = tl.zeros([BLOCK_ROWS, BLOCK_KEYS], tl.float32)
        for step in range(begin, end):
            tile = tl.where(step < open_tiles, step, diagonal - open_tiles + step)
            start = tile * BLOCK_ROWS
            row = start + lane
            far = start.to(tl.int64)
            # A sum of inf keeps rows out that do not exist.
            below = tl.load(
                sums + far * l_row + lane * l_row, mask=row < length, other=float("inf")
            )
            at = q + far * q_row
            if CHUNK == DIMS:
                rows = load_rows(at, lane, row < length, q_row, dim, q_dim, DIMS, UPCAST)
                logits = tl.dot(rows, block, input_precision="tf32x3")
            else:
                logits = products_in_chunks(
                    at,
                    lane,
                    row < length,
                    q_row,
                    q_dim,
                    k,
                    key,
                    key < length,
                    k_key,
                    k_dim,
                    dim,
                    CHUNK,
                )
            weights = tl.exp2(logits * scaling - (below * 1.4426950408889634)[:, None])
            if MASK == 2:
                exist = (row < length)[:, None] & (key < length)[None]
                there = lane.to(tl.int64)[:, None] * m_row + key.to(tl.int64)[None] * m_key
                visible = tl.load(seen + far * m_row + there, mask=exist, other=0).to(tl.int1)
                weights = tl.where(visible, weights, 0.0)
            else:
                crosses = (start < first + BLOCK_KEYS) & (start + BLOCK_ROWS > free)
                if crosses:
                    visible = (key[None] <= row[:, None]) | (row < free)[:, None]
                    weights = tl.where(visible, weights, 0.0)
            total += weights
        collected = tl.sum(total, 0)
        if MASK == 1:
            there = key.to(tl.int64) * m_key
            visible = tl.load(seen + there, mask=key < length, other=0).to(tl.int1)
            collected = tl.where(visible, collected, 0.0)
        out = parts + split.to(tl.int64) * p_split + batch * p_batch + head * length
        tl.store(out + key, collected, mask=key < length)
