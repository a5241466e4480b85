"""Caches of many cells in one pool of tiles, as a decoding step finds them, and what it must give.

Knows no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import methods

from .count import Count
from .measure import error
from .shapes import Shape

METHODS, RATIOS = 6, (0.5, 0.7, 0.8, 0.9, 0.95)
_SMALL_TILE, _LARGE_TILE = 16, 64  # entries, as the engine chooses them


def cell_counts(shape: Shape) -> list[int]:
    """Entries that each cell keeps of the prompt."""
    return [shape.length, *[methods.budget(shape.length, ratio) for ratio in RATIOS] * METHODS]


@dataclass(frozen=True, eq=False)
class Pool:
    """The new token's entries are in the pool already, behind `counts` of each sequence.

    keys, values [T, tile, d], places int64 [T, tile], table int32 [S, blocks], counts and after
    (counts + 1) int32 [S], owner int64 [T], queries [S, g, d], new_keys and new_values [S, 1, d],
    first int64 [1]; slots int64 [S], where the new entries are in the flat pool. On the host:
    starts, the first tile of each sequence.
    """

    keys: Tensor
    values: Tensor
    places: Tensor
    table: Tensor
    counts: Tensor
    after: Tensor
    owner: Tensor
    queries: Tensor
    new_keys: Tensor
    new_values: Tensor
    first: Tensor
    slots: Tensor
    starts: list[int]
    scaling: float

    def entries(self, shape: Shape, sequence: int) -> tuple[Tensor, Tensor]:
        """Keys and values [n + 1, d] of a sequence."""
        tile = self.keys.shape[1]
        count = cell_counts(shape)[sequence // shape.kv_heads] + 1
        begin = self.starts[sequence] * tile
        pools = (self.keys, self.values)
        keys, values = (each.view(-1, shape.dim)[begin : begin + count] for each in pools)
        return keys, values


def draw(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Pool:
    """Normal numbers, in tiles that lie in the order of the sequences."""
    counts = torch.tensor(cell_counts(shape)).repeat_interleave(shape.kv_heads)
    tile = _SMALL_TILE if shape.length < 32 * _SMALL_TILE else _LARGE_TILE
    blocks = counts // tile + 1
    starts = blocks.cumsum(0) - blocks
    sequences, total = len(counts), int(blocks.sum())
    block = torch.arange(int(blocks.max()))
    table = torch.where(block < blocks[:, None], starts[:, None] + block, -1)
    owner = torch.repeat_interleave(torch.arange(sequences), blocks)
    order = (torch.arange(total) - starts[owner])[:, None] * tile + torch.arange(tile)
    held = counts[owner][:, None]
    places = torch.where(order < held, order * shape.length // held, -1)
    places = torch.where(order == held, shape.length, places)  # the new token
    slots = starts * tile + counts
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        if generator is None:
            return torch.empty(*sizes, dtype=dtype, device=device)
        return torch.randn(*sizes, generator=generator, dtype=dtype, device=device)

    keys, values = (normal(total, tile, shape.dim) for _ in range(2))
    queries = normal(sequences, shape.group, shape.dim)
    new_keys, new_values = (normal(sequences, 1, shape.dim) for _ in range(2))
    where = slots.to(device)
    for pool, new in ((keys, new_keys), (values, new_values)):
        pool.view(-1, shape.dim).index_copy_(0, where, new[:, 0])
    count, after = (each.int().to(device) for each in (counts, counts + 1))
    first = torch.tensor([shape.length]).to(device)
    index = (table.int().to(device), count, after, owner.to(device))
    added = (queries, new_keys, new_values, first, where)
    return Pool(keys, values, places.to(device), *index, *added, starts.tolist(), shape.dim**-0.5)


def attention_error(shape: Shape, pool: Pool, got: Any) -> float:
    """Against float64 on the first and the last KV head of the full cell and of each ratio."""
    outputs, weights = got if isinstance(got, tuple) else (got, None)
    worst, tile = 0.0, pool.keys.shape[1]
    for cell in range(1 + len(RATIOS)):
        for head in {0, shape.kv_heads - 1}:
            sequence = cell * shape.kv_heads + head
            keys, values = (each.double() for each in pool.entries(shape, sequence))
            rows = (pool.queries[sequence].double() @ keys.T * pool.scaling).softmax(-1)
            worst = max(worst, error(outputs[sequence], rows @ values))
            if weights is not None:
                begin = pool.starts[sequence]
                own = weights[begin : begin + -(-len(keys) // tile)]
                own = own.transpose(0, 1).flatten(1)[:, : len(keys)]
                worst = max(worst, error(own, rows))
    return worst


def append_error(_shape: Shape, pool: Pool, got: tuple[Tensor, Tensor, Tensor]) -> float:
    """0 if keys, values and places hold the new entries and else what they held."""
    wanted = (pool.keys, pool.values, pool.places)
    return _different(got, wanted)


def move_error(_shape: Shape, pool: Pool, got: tuple[Tensor, Tensor, Tensor]) -> float:
    """0 if the new entry of each sequence lies where its first did, and nothing else changed."""
    wanted = [each.clone() for each in (pool.keys, pool.values, pool.places)]
    tile = pool.keys.shape[1]
    target = torch.tensor(pool.starts, device=pool.keys.device) * tile
    for each in wanted:
        flat = each.view(-1, *each.shape[2:])
        flat[target] = flat[pool.slots]
    wanted[2].view(-1)[pool.slots] = -1
    return _different(got, wanted)


def _different(got: Any, wanted: Any) -> float:
    pairs = zip(got, wanted, strict=True)
    return 0.0 if all(torch.equal(a, b) for a, b in pairs) else float("inf")


def attention_count(shape: Shape, rows: bool = False) -> Count:
    """Every entry and its place in once, queries in, outputs out; rows: a weight for each query
    head and entry out."""
    entries = shape.kv_heads * sum(count + 1 for count in cell_counts(shape))
    queries = len(cell_counts(shape)) * shape.heads * shape.dim * shape.itemsize
    moved = entries * (2 * shape.dim * shape.itemsize + 8) + 2 * queries
    weights = entries * shape.group * 4 if rows else 0
    flops = 4 * entries * shape.group * shape.dim
    return Count(moved + weights, flops, queries + weights)


def append_count(shape: Shape) -> Count:
    """A new entry of every sequence in and out, its place out."""
    sequences = len(cell_counts(shape)) * shape.kv_heads
    return Count(sequences * (4 * shape.dim * shape.itemsize + 8))


def move_count(shape: Shape) -> Count:
    """An entry of every sequence and its place in and out, three places and its table's tile in,
    the place behind the end out."""
    sequences = len(cell_counts(shape)) * shape.kv_heads
    return Count(sequences * (4 * shape.dim * shape.itemsize + 6 * 8))
