"""Attention of one new token of 31 cells over caches of different lengths, and its bookkeeping.

The cells are the full cache and six methods at five ratios, all of one prompt and one layer: what
the sweep decodes at once. Baselines: "padded" is torch's fused attention over caches padded to the
longest, with a mask; "one_by_one" the same for each cell by itself, without padding or mask;
"torch" the twin of the kernel; "launched" is a step without its CUDA graph. The query heads of a KV
head are rows of one attention there, so that nothing is expanded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from methods import kernels
from methods.kernels.append_entries import append_entries
from methods.kernels.move_entries import move_entries
from methods.kernels.ragged_attention import ragged_attention

from .case import Baseline, Operation, Suite, Work
from .pool import (
    Pool,
    append_count,
    append_error,
    attention_count,
    attention_error,
    cell_counts,
    draw,
    move_count,
    move_error,
)
from .shapes import SMALL, Shape, shapes

_PADDING = 64  # entries to which padded caches are rounded


def _attend(rows: bool, shape: Shape, pool: Pool) -> Work:
    index = (pool.places, pool.table, pool.after, pool.owner, pool.first, 1, pool.scaling)
    return partial(ragged_attention, pool.queries, pool.keys, pool.values, *index, rows=rows)


def _by_torch(prepare: Callable[[Shape, Pool], Work], shape: Shape, pool: Pool) -> Work:
    work = prepare(shape, pool)

    def run() -> Any:
        with kernels.using("torch"):
            return work()

    return run


def _padded(shape: Shape, pool: Pool) -> Work:
    """Caches [cells, Hkv, n, d] and a mask [cells, 1, 1, n]."""
    kept, longest = cell_counts(shape), shape.length + 1
    longest += -longest % _PADDING
    sizes = (len(kept), shape.kv_heads, longest, shape.dim)
    keys, values = (pool.keys.new_zeros(sizes) for _ in range(2))
    for sequence in range(len(kept) * shape.kv_heads):
        where = divmod(sequence, shape.kv_heads)
        own = pool.entries(shape, sequence)
        for target, source in zip((keys, values), own, strict=True):
            target[where][: len(source)] = source
    seen = pool.after.view(len(kept), -1)[:, :1, None, None]
    mask = torch.arange(longest, device=keys.device) < seen
    queries = pool.queries.unflatten(0, (len(kept), -1))
    attend = partial(scaled_dot_product_attention, attn_mask=mask, scale=pool.scaling)
    return lambda: attend(queries, keys, values).flatten(0, 1)


def _one_by_one(shape: Shape, pool: Pool) -> Work:
    """Caches [1, Hkv, n, d], no mask."""
    caches = []
    for cell in range(len(cell_counts(shape))):
        heads = range(cell * shape.kv_heads, (cell + 1) * shape.kv_heads)
        pairs = zip(*(pool.entries(shape, each) for each in heads), strict=True)
        keys, values = (torch.stack(each)[None] for each in pairs)
        caches.append((pool.queries[heads.start : heads.stop][None], keys, values))

    def run() -> Tensor:
        every = [scaled_dot_product_attention(*each, scale=pool.scaling) for each in caches]
        return torch.cat(every).flatten(0, 1)

    return run


def _append(shape: Shape, pool: Pool) -> Work:
    keys, values, places = (each.clone() for each in (pool.keys, pool.values, pool.places))
    keys.view(-1, shape.dim).index_fill_(0, pool.slots, 0)
    values.view(-1, shape.dim).index_fill_(0, pool.slots, 0)
    places.view(-1).index_fill_(0, pool.slots, -1)
    new = (pool.new_keys, pool.new_values, pool.first)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        append_entries(keys, values, places, None, pool.table, pool.counts, *new)
        return keys, values, places

    return run


def _move(shape: Shape, pool: Pool) -> Work:
    """The new entry of each sequence goes to the place of its first."""
    keys, values, places = (each.clone() for each in (pool.keys, pool.values, pool.places))
    sequences = torch.arange(len(pool.counts), device=keys.device)
    last = pool.counts.long()[:, None]
    index = (pool.table, sequences, last, torch.zeros_like(last), last)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        move_entries(keys, values, places, None, *index)
        return keys, values, places

    return run


def _step(shape: Shape, pool: Pool) -> Work:
    """Append the new entries, then attend to all."""
    attend = _attend(False, shape, pool)
    parts = (pool.keys, pool.values, pool.places, None, pool.table, pool.counts)
    new = (pool.new_keys, pool.new_values, pool.first)

    def run() -> Any:
        append_entries(*parts, *new)
        return attend()

    return run


def _replayed(shape: Shape, pool: Pool) -> Work:
    """The same in one CUDA graph; without a CUDA device, the same."""
    step = _step(shape, pool)
    if pool.keys.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def run() -> Any:
        graph.replay()
        return result

    return run


_BASELINES = {"padded": Baseline(_padded), "one_by_one": Baseline(_one_by_one)}


def _torch_twin(prepare: Callable[[Shape, Pool], Work]) -> dict[str, Baseline]:
    return {"torch": Baseline(partial(_by_torch, prepare))}


OPERATIONS = (
    Operation(
        "ragged_attention",
        attention_count,
        partial(_attend, False),
        attention_error,
        _BASELINES | _torch_twin(partial(_attend, False)),
    ),
    Operation(
        "ragged_attention_rows",
        partial(attention_count, rows=True),
        partial(_attend, True),
        attention_error,
        _BASELINES | _torch_twin(partial(_attend, True)),
    ),
    Operation(
        "append_entries", append_count, _append, append_error, _torch_twin(_append), tolerance=0.0
    ),
    Operation("move_entries", move_count, _move, move_error, _torch_twin(_move), tolerance=0.0),
    Operation(
        "decode_step_graph",
        lambda shape: attention_count(shape) + append_count(shape),
        _replayed,
        attention_error,
        {"launched": Baseline(_step)},
    ),
)

SUITE = Suite("decode", OPERATIONS, draw, shapes, SMALL)
