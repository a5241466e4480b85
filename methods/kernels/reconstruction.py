"""How far a head's output moves when one token is dropped. Must not know windows or budgets.

Dropping token j with attention a changes a head's output by a / (1 - a) * (o - v_j) (arXiv
2605.08840, and 2504.14051 without the projection). Its norm after the output projection W_O needs
only R of W_O = Q R, since Q preserves lengths: d x d instead of hidden x d, and no tensor with the
hidden size.
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
    odds,
    squared_lengths,
    squared_lengths_of_loaded,
)
from .factors import rounded_factors
from .launch import ROOMIEST, by_triton, capability, jit, launch, processors, tl, triton, upcast

_GROUPS = ("none", "mean", "max")


def reconstruction(
    attention: Tensor,
    outputs: Tensor,
    values: Tensor,
    factors: Tensor | None,
    tau: float = 1.0,
    normalize: bool = False,
    group: str = "none",
) -> Tensor:
    """a / (1 - a) * || R (o - v_j) ||^tau for every query head and token, float32 [B, H, L].

    attention a [B, H, L], outputs o [B, H, d], values [B, Hkv, L, d]; factors [H, r, d], upper
    triangular as `output_factors` gives them, or None for the norm in value space. normalize
    divides by || R o ||. group: "mean" or "max" over the query heads of a KV head, [B, Hkv, L];
    ValueError for another name than these and "none".

    A key that takes all attention has o = v_j and 1 - a = 0. With 1 - a held at 1e-6 and the
    distance at 1e-6 || R o || it scores || R v_j ||, the limit when nothing else is attended to.

    The kernel reads the values once, rounds o - v_j and R to the dtype of the values, and sums in
    float32: 2 H L d^2 operations, of which it leaves out chunks of R that are zero (a quarter at
    d = 128, 3 in 8 at d = 256). Three launches.
    """
    if group not in _GROUPS:
        raise ValueError(f"group={group!r} is unknown; choose one of {', '.join(_GROUPS)}.")
    size = lengths(outputs[:, :, None].float(), factors)  # [B, H, 1]
    if by_triton(values, outputs):
        return _by_triton(attention, outputs, values, factors, size, tau, normalize, group)
    heads = outputs.unflatten(1, (values.shape[1], -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    pieces = []
    for start, stop in blocks(attention, values.shape[-1]):
        moved = (heads - values[:, :, None, start:stop].float()).flatten(1, 2)  # [B, H, block, d]
        pieces.append(lengths(moved, factors))
    distance = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    distance = torch.maximum(distance, LEAST * size)
    change = odds(attention) * (distance if tau == 1.0 else distance.pow(tau))
    change = change / size.clamp_min(LEAST) if normalize else change
    if group == "none":
        return change
    grouped = change.unflatten(1, (values.shape[1], -1))
    return grouped.amax(2) if group == "max" else grouped.mean(2)


def _config(
    narrow: bool, dim: int, capability: int, programs: int, processors: int
) -> dict[str, int]:
    """Launch parameters; narrow: products in half precision. KEEP: values stay in registers.

    programs: how many tiles of 128 tokens there are. Large tiles read the factors less often, small
    ones keep a GPU busy with few tokens.
    """
    if not narrow:
        return _parameters(64, 32, False, 4, 1)
    few = programs < 2 * processors
    if few or (dim > 128 and capability not in ROOMIEST):
        return _parameters(64, 64, dim <= 128, 4, 2)
    if dim > 128:
        return _parameters(128, 64, True, 8, 1)
    return _parameters(256 if dim <= 64 else 128, 64, True, 8, 2)


def _parameters(block: int, chunk: int, keep: bool, warps: int, stages: int) -> dict[str, int]:
    tile = {"BLOCK": block, "CHUNK": chunk, "KEEP": keep}
    return tile | {"num_warps": warps, "num_stages": stages}


def _by_triton(
    attention: Tensor,
    outputs: Tensor,
    values: Tensor,
    factors: Tensor | None,
    size: Tensor,
    tau: float,
    normalize: bool,
    group: str,
) -> Tensor:
    batch, kv_heads, length, dim = values.shape
    heads, device = outputs.shape[1], values.device
    if factors is not None:
        factors = rounded_factors(factors, values.dtype)
    programs = triton.cdiv(length, 128) * batch * kv_heads
    narrow = factors is not None and factors.dtype.itemsize == 2
    config = _config(narrow, dim, capability(device), programs, processors(device))
    kept = heads if group == "none" else kv_heads
    result = torch.empty(batch, kept, length, dtype=torch.float32, device=device)
    launch(
        _reconstruction_kernel,
        (triton.cdiv(length, config["BLOCK"]), batch * kv_heads),
        attention,
        outputs,
        values,
        factors,
        size,
        result,
        float(tau),
        length,
        dim,
        0 if factors is None else factors.shape[1],
        kv_heads,
        heads // kv_heads,
        *attention.stride(),
        *outputs.stride(),
        *values.stride(),
        *((0, 0, 0) if factors is None else factors.stride()),
        CHUNKS=triton.cdiv(dim, config["CHUNK"]),
        ROWS=0 if factors is None else triton.cdiv(factors.shape[1], config["CHUNK"]),
        LEAST=LEAST,
        POWER=tau != 1.0,
        NORMALIZE=normalize,
        GROUP=group,
        UPCAST=upcast(values.dtype),
        **config,
    )
    return result


@jit
def _reconstruction_kernel(
    attention,
    outputs,
    values,
    factors,
    sizes,
    result,
    tau,
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
    ROWS: tl.constexpr,
    LEAST: tl.constexpr,
    POWER: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    KEEP: tl.constexpr,
):
    """One tile of tokens of a KV head, for every query head of the group.

    ROWS: chunks of rows of the factors, 0 without them.
    """
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < length
    v = values + batch * v_batch + kv_head * v_head
    parts = load_parts(v, token, inside, v_token, dim, v_dim, CHUNKS if KEEP else 0, CHUNK, UPCAST)
    total = tl.zeros([BLOCK], tl.float32)  # no change is negative
    # Hoisted out of the loop, values widened to float32 would take twice the registers.
    for member in tl.range(0, group, disable_licm=True):
        head = kv_head * group + member
        output = outputs + batch * o_batch + head * o_head
        factor = factors + head * f_head if ROWS else outputs
        if KEEP:
            squared = squared_lengths(
                parts,
                output,
                factor,
                dim,
                rows,
                o_dim,
                f_row,
                f_dim,
                CHUNKS,
                ROWS,
                CHUNK,
                UPCAST,
                BLOCK,
            )
        else:
            squared = squared_lengths_of_loaded(
                v,
                token,
                inside,
                v_token,
                v_dim,
                output,
                factor,
                dim,
                rows,
                o_dim,
                f_row,
                f_dim,
                CHUNKS,
                ROWS,
                CHUNK,
                UPCAST,
                BLOCK,
            )
        size = tl.load(sizes + batch * kv_heads * group + head)
        change = tl.maximum(tl.sqrt(squared), LEAST * size)
        if POWER:
            change = tl.exp2(tau * tl.log2(change))
        change *= load_odds(
            attention + batch * a_batch + head * a_head, token, inside, a_token, LEAST
        )
        if NORMALIZE:
            change /= tl.maximum(size, LEAST)
        if GROUP == "none":
            at = result + (batch * kv_heads * group + head) * length + token
            tl.store(at, change, mask=inside)
        elif GROUP == "max":
            total = tl.maximum(total, change)
        else:
            total += change
    if GROUP != "none":
        if GROUP == "mean":
            total = total / group
        tl.store(result + (batch * kv_heads + kv_head) * length + token, total, mask=inside)
