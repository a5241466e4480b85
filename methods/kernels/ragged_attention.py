"""Attention of new tokens over sequences of any lengths, whose entries lie in a pool of tiles.

Must not know policies, models or how entries come into the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .launch import LOG2_E, ROOMIEST, by_triton, capability, launch, processors, triton, upcast
from .ragged_kernels import attention_kernel, combine_kernel, weights_kernel
from .ragged_runs import Run, attend_runs

_FEWEST, _MOST = 256, 2048  # entries a program, between which a sequence is split to fill the GPU
_WAVES = 4  # programs a processor, if all sequences were as long as the longest
_PARTS = 8192  # elements of partial outputs that are combined at once
_WEIGHTS = 2048  # weights that one program normalises


class Turning(NamedTuple):
    """Rotary positions for keys that are stored without: each entry's rank in its sequence.

    cosines, sines float32 [P, dim], equal for the two elements of a pair, turn the first dim
    elements of a key, k cos + rotate_half(k) sin. start int64 [S]: the row at which a sequence's
    turns begin, -1 if its keys are taken as they are stored. ranks int32 [T, tile], 0 where there
    is no entry. interleaved: pairs are neighbours, not an element of each half.
    """

    cosines: Tensor
    sines: Tensor
    start: Tensor
    ranks: Tensor
    interleaved: bool


def ragged_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    table: Tensor,
    counts: Tensor,
    owner: Tensor,
    first: Tensor,
    tokens: int,
    scaling: float,
    rows: bool = False,
    turning: Turning | None = None,
    runs: Sequence[Run] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [S, R, dv] of queries [S, R, d], and if `rows` the weights float32 [T, R, tile].

    keys [T, tile, d], values [T, tile, dv]; places int64 [T, tile], the token of each entry, -1
    where there is none (keys and values there may be anything). table int32 [S, blocks]: the tiles
    of each sequence, -1 behind its last; counts int32 [S]: its entries, the first so many slots;
    owner int64 [T]: the sequence of a tile. The R rows are g query heads x `tokens` new tokens, and
    row r sees the places up to first + r % tokens, first int64 [1]: at least its own. Everything is
    on one device, and nothing in it is waited for. The kernel reads an entry once for the rows of
    its sequence, up to 64. runs: of the whole pool, from callers that know them; a single token
    then sees every entry. Plain torch multiplies runs in place of tiles, and the weights are those
    of `attend_runs`.
    """
    assert queries.shape[1] % tokens == 0
    if by_triton(queries, keys, values):
        pool = (keys, values, places, table, counts, owner)
        return _by_triton(queries, *pool, first, tokens, scaling, rows, turning)
    if runs is not None and turning is None:
        return attend_runs(queries, runs, first, tokens, scaling, rows)
    if turning is not None:
        keys = _turned(keys, owner, turning)
    logits = product(queries[owner], keys.transpose(1, 2)).mul_(scaling)  # [T, R, tile]
    token = first + torch.arange(tokens, device=first.device)[:, None]
    absent = (places < 0)[:, None]  # [T, 1, tile]
    hidden = absent | (places[:, None] > token)  # [T, tokens, tile]
    logits.masked_fill_(hidden.repeat(1, queries.shape[1] // tokens, 1), -torch.inf)
    top = logits.new_full((len(queries), logits.shape[1]), -torch.inf)
    top.scatter_reduce_(0, owner[:, None].expand(logits.shape[:2]), logits.amax(-1), "amax")
    weights = logits.sub_(top[owner][..., None]).exp_()
    total = sum_by_sequence(weights.sum(-1), table, owner)
    weights /= total[owner][..., None]
    held = values.masked_fill(absent.transpose(1, 2), 0)
    parts = product(weights.to(values.dtype), held)
    outputs = sum_by_sequence(parts, table, owner).to(values.dtype)
    return outputs, weights if rows else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a b of one dtype, float32: half precision rounds large products, and overflows."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())


def sum_by_sequence(parts: Tensor, table: Tensor, owner: Tensor) -> Tensor:
    """Sum of parts [T, ...] over the tiles of each sequence, [S, ...]."""
    if not parts.is_cuda:
        return parts.new_zeros(len(table), *parts.shape[1:]).index_add_(0, owner, parts)
    return padded_sum(parts, table)


def padded_sum(parts: Tensor, table: Tensor) -> Tensor:
    """The same in a fixed order, which index_add_ has not on a GPU."""
    absent = (table < 0).view(*table.shape, *(1 for _ in parts.shape[1:]))
    return parts[table.clamp_min(0).long()].masked_fill(absent, 0.0).sum(1)


def _turned(keys: Tensor, owner: Tensor, turning: Turning) -> Tensor:
    """Keys [T, tile, d] with the turns of their ranks, those of other sequences as they are."""
    start = turning.start[owner][:, None]  # [T, 1]
    row = start.clamp_min(0) + turning.ranks
    cos, sin = turning.cosines[row], turning.sines[row]  # [T, tile, dim]
    dim = cos.shape[-1]
    still, rest = keys.float().split_with_sizes([dim, keys.shape[-1] - dim], dim=-1)
    if turning.interleaved:
        half = torch.stack([-still[..., 1::2], still[..., ::2]], dim=-1).flatten(-2)
    else:
        half = torch.cat([-still[..., dim // 2 :], still[..., : dim // 2]], dim=-1)
    turned = torch.cat([still * cos + half * sin, rest], dim=-1).to(keys.dtype)
    return torch.where(start[..., None] < 0, keys, turned)


def _config(dtype: torch.dtype, dims: int, rows: int, turned: bool) -> dict[str, int]:
    """Launch parameters for heads of `dims` elements and a block of rows, powers of 2."""
    wide = dims > 128
    stages = 2 if wide else 3
    if dtype == torch.float32:
        return {"BLOCK": 32 if dims <= 64 else 16, "num_warps": 8, "num_stages": stages}
    many = rows > 16 or (turned and dims > 64)  # registers for one warpgroup
    block = 32 if wide and turned else 64
    return {"BLOCK": block, "num_warps": 8 if many else 4, "num_stages": stages}


def _most_rows(dtype: torch.dtype, dims: int, capability: int) -> int:
    """Query rows of a sequence that one program takes; more take their turns at its entries."""
    if dtype == torch.float32:
        return 16
    return 64 if dims <= 128 and capability in ROOMIEST else 32


def _chunk(longest: int, programs: int, block: int, device: torch.device) -> int:
    """Entries a program, a multiple of the block: from shapes only, lengths are on the device."""
    even = triton.cdiv(longest * programs, _WAVES * processors(device))
    return triton.cdiv(min(max(even, _FEWEST), _MOST), block) * block


def _by_triton(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    table: Tensor,
    counts: Tensor,
    owner: Tensor,
    first: Tensor,
    tokens: int,
    scaling: float,
    rows: bool,
    turning: Turning | None,
) -> tuple[Tensor, Tensor | None]:
    """One launch; a second if sequences are split, and a last for the weights."""
    sequences, query_rows, dim = queries.shape
    total, tile, value_dim = values.shape
    sizes = {"DIMS": _padded(dim), "VALUE_DIMS": _padded(value_dim)}
    dims = max(sizes.values())
    row_block = min(_padded(query_rows), _most_rows(keys.dtype, dims, capability(keys.device)))
    row_blocks = triton.cdiv(query_rows, row_block)
    config = _config(keys.dtype, dims, row_block, turning is not None)
    longest = table.shape[1] * tile
    chunk = _chunk(longest, sequences * row_blocks, config["BLOCK"], keys.device)
    splits = triton.cdiv(longest, chunk)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=keys.device)

    outputs = empty(sequences, query_rows, value_dim, dtype=values.dtype)
    parts = outputs if splits == 1 else empty(sequences, query_rows, splits, value_dim)
    lse = empty(sequences, query_rows, splits)
    weights = empty(total, query_rows, tile) if rows else None
    turns, turn_sizes = _turns(turning, dim)
    launch(
        attention_kernel,
        (sequences * row_blocks, splits),
        queries,
        keys,
        values,
        places,
        table,
        counts,
        first,
        *turns,
        parts,
        lse,
        weights,
        scaling * LOG2_E,
        chunk,
        splits,
        query_rows,
        row_blocks,
        tokens,
        dim,
        value_dim,
        *queries.stride(),
        *keys.stride(),
        *values.stride(),
        places.stride(0),
        table.stride(0),
        TILE=tile,
        ROWS=row_block,
        **sizes,
        **turn_sizes,
        UPCAST=upcast(keys.dtype),
        **config,
    )
    final = lse
    if splits > 1:
        final = empty(sequences, query_rows)
        launch(
            combine_kernel,
            (sequences * query_rows,),
            parts,
            lse,
            counts,
            outputs,
            final,
            chunk,
            splits,
            query_rows,
            value_dim,
            DIMS=sizes["VALUE_DIMS"],
            PARTS=min(triton.next_power_of_2(splits), _PARTS // sizes["VALUE_DIMS"]),
            num_warps=4,
        )
    if weights is not None:
        pairs = _WEIGHTS // tile
        launch(
            weights_kernel,
            (triton.cdiv(total * query_rows, pairs),),
            weights,
            final,
            places,
            owner,
            total * query_rows,
            query_rows,
            places.stride(0),
            TILE=tile,
            PAIRS=pairs,
            num_warps=4,
        )
    return outputs, weights


def _padded(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


def _turns(turning: Turning | None, dim: int) -> tuple[tuple[Any, ...], dict[str, int | bool]]:
    """Arguments for the turns of keys, and the sizes of the pieces they are multiplied in."""
    if turning is None:
        return (None, None, None, None, 0, 0), {"HALF": 0, "REST": 0, "INTERLEAVED": False}
    cosines, sines, start, ranks, interleaved = turning
    turned = cosines.shape[1]
    assert cosines.is_contiguous()
    assert sines.is_contiguous()
    return (cosines, sines, start, ranks, turned, ranks.stride(0)), {
        "HALF": _padded(turned // 2),
        "REST": _padded(dim - turned) if dim > turned else 0,
        "INTERLEAVED": interleaved,
    }
