"""How far a layer's output moves when a KV head drops a token. Must not know windows or budgets.

The changes of the query heads that share the KV head add up before their norm is taken, unlike in
`reconstruction`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .changes import (
    LEAST,
    blocks,
    lengths,
    load_odds,
    load_parts,
    load_values,
    moved,
    odds,
    project,
)
from .factors import rounded_factors
from .launch import ROOMIEST, by_triton, capability, jit, launch, tl, triton, upcast


def joint_reconstruction(
    attention: Tensor, outputs: Tensor, values: Tensor, factors: Tensor | None
) -> Tensor:
    """|| sum_h a_h / (1 - a_h) R_h (o_h - v_j) || over the query heads of each KV head.

    float32 [B, Hkv, L]: the exact change of the layer's output when a KV head drops token j.
    attention a [B, H, L], outputs o [B, H, d], values [B, Hkv, L, d]; factors [Hkv, r, g * d],
    upper triangular, come from `output_factors(weight, Hkv)`; None sums the heads in value
    space. A key that takes all attention of a head counts as in `reconstruction`.
    """
    kv_heads, dim = values.shape[1], values.shape[3]
    own = None if factors is None else factors.unflatten(2, (-1, dim)).transpose(1, 2).flatten(0, 1)
    size = lengths(outputs[:, :, None].float(), own)  # [B, H, 1]
    if by_triton(values, outputs):
        return _by_triton(attention, outputs, values, factors, size)
    heads = outputs.unflatten(1, (kv_heads, -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    weights = odds(attention).unflatten(1, (kv_heads, -1))  # [B, Hkv, g, L]
    pieces = []
    for start, stop in blocks(attention, dim):
        change = heads - values[:, :, None, start:stop].float()
        change = change * weights[:, :, :, start:stop, None]  # [B, Hkv, g, block, d]
        joined = change.sum(2) if factors is None else change.transpose(2, 3).flatten(3)
        pieces.append(lengths(joined, factors))
    size = size.unflatten(1, (kv_heads, -1))  # [B, Hkv, g, 1]
    return torch.maximum(torch.cat(pieces, dim=-1), (weights * (LEAST * size)).amax(2))


def _config(narrow: bool, dim: int, capability: int) -> dict[str, int]:
    """Launch parameters; narrow: products in half precision. KEEP: values stay in registers."""
    if not narrow:
        return _parameters(64, 64, 32, False, 8, 1)
    if dim in (64, 128) and capability in ROOMIEST:
        return _parameters(128, 128, 64, True, 8, 2)
    return _parameters(128, 128, 64 if capability in ROOMIEST else 32, False, 8, 2)


def _parameters(
    block: int, rows: int, chunk: int, keep: bool, warps: int, stages: int
) -> dict[str, int]:
    tile = {"BLOCK": block, "ROWS": rows, "CHUNK": chunk, "KEEP": keep}
    return tile | {"num_warps": warps, "num_stages": stages}


def _by_triton(
    attention: Tensor, outputs: Tensor, values: Tensor, factors: Tensor | None, size: Tensor
) -> Tensor:
    batch, kv_heads, length, dim = values.shape
    if factors is not None:
        factors = rounded_factors(factors, values.dtype)
    narrow = factors is not None and factors.dtype.itemsize == 2
    config = _config(narrow, dim, capability(values.device))
    result = torch.empty(batch, kv_heads, length, dtype=torch.float32, device=values.device)
    launch(
        _joint_kernel,
        (triton.cdiv(length, config["BLOCK"]), batch * kv_heads),
        attention,
        outputs,
        values,
        factors,
        size,
        result,
        length,
        dim,
        0 if factors is None else factors.shape[1],
        kv_heads,
        outputs.shape[1] // kv_heads,
        *attention.stride(),
        *outputs.stride(),
        *values.stride(),
        *((0, 0, 0) if factors is None else factors.stride()),
        CHUNKS=triton.cdiv(dim, config["CHUNK"]),
        LEAST=LEAST,
        PROJECT=factors is not None,
        UPCAST=upcast(values.dtype),
        **config,
    )
    return result


@jit
def _joint_kernel(
    attention,
    outputs,
    values,
    factors,
    sizes,
    result,
    length,
    dim,
    rows,
    kv_heads,
    group,
    a_batch,
    a_head,
    a_token,
    o_batch,
    o_head,
    o_dim,
    v_batch,
    v_head,
    v_token,
    v_dim,
    f_head,
    f_row,
    f_dim,
    CHUNKS: tl.constexpr,
    LEAST: tl.constexpr,
    PROJECT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    KEEP: tl.constexpr,
):
    """One tile of tokens of a KV head against ROWS rows of its factor after another.

    The odds of a token are divided by their largest over the heads, and the result multiplied by
    it: a / (1 - a) may exceed what float16 holds.
    """
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < length
    a = attention + batch * a_batch + kv_head * group * a_head
    o = outputs + batch * o_batch + kv_head * group * o_head
    v = values + batch * v_batch + kv_head * v_head
    top = tl.full([BLOCK], 1e-30, tl.float32)
    floor = tl.zeros([BLOCK], tl.float32)
    for member in range(group):
        weight = load_odds(a + member * a_head, token, inside, a_token, LEAST)
        size = tl.load(sizes + (batch * kv_heads + kv_head) * group + member)
        top = tl.maximum(top, weight)
        floor = tl.maximum(floor, weight * (LEAST * size))
    squared = tl.zeros([BLOCK], tl.float32)
    if PROJECT:
        factor = factors + kv_head * f_head
        parts = load_parts(
            v, token, inside, v_token, dim, v_dim, CHUNKS if KEEP else 0, CHUNK, UPCAST
        )
        for first in range(0, rows, ROWS):
            product = tl.zeros([BLOCK, ROWS], tl.float32)
            # R is upper triangular: columns before the first row are zero.
            if KEEP:  # heads end where chunks of rows do
                # Hoisted out of the loop, values widened to float32 would take more registers.
                for member in tl.range(first // dim, group, disable_licm=True):
                    weight = load_odds(a + member * a_head, token, inside, a_token, LEAST)
                    weight = weight / top * 16.0  # clear of float16's smallest numbers
                    for chunk in tl.static_range(CHUNKS):
                        x = moved(o + member * o_head, parts[chunk], chunk, dim, o_dim, CHUNK)
                        product = project(
                            product,
                            x * weight[:, None],
                            factor + member * dim * f_dim,
                            first,
                            chunk,
                            rows,
                            dim,
                            f_row,
                            f_dim,
                            CHUNK,
                            ROWS,
                            UPCAST,
                        )
            else:
                begin = first // dim * CHUNKS + first % dim // CHUNK
                for index in range(begin, group * CHUNKS):
                    member, chunk = index // CHUNKS, index % CHUNKS
                    weight = load_odds(a + member * a_head, token, inside, a_token, LEAST)
                    weight = weight / top * 16.0
                    part = load_values(v, token, inside, v_token, dim, v_dim, chunk, CHUNK, UPCAST)
                    x = moved(o + member * o_head, part, chunk, dim, o_dim, CHUNK)
                    product = project(
                        product,
                        x * weight[:, None],
                        factor + member * dim * f_dim,
                        first,
                        chunk,
                        rows,
                        dim,
                        f_row,
                        f_dim,
                        CHUNK,
                        ROWS,
                        UPCAST,
                    )
            squared += tl.sum(product * product, 1)
        change = tl.sqrt(squared) * (top / 16.0)
    else:
        for chunk in range(CHUNKS):
            part = load_values(v, token, inside, v_token, dim, v_dim, chunk, CHUNK, UPCAST)
            total = tl.zeros([BLOCK, CHUNK], tl.float32)
            for member in range(group):
                weight = load_odds(a + member * a_head, token, inside, a_token, LEAST)
                x = moved(o + member * o_head, part, chunk, dim, o_dim, CHUNK)
                total += (weight / top)[:, None] * x
            squared += tl.sum(total * total, 1)
        change = tl.sqrt(squared) * top
    at = result + (batch * kv_heads + kv_head) * length + token
    tl.store(at, tl.maximum(change, floor), mask=inside)
