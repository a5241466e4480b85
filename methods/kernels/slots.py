"""Where entries lie in a pool of tiles, and how whole rows are copied. Must not know why they are.

The entries of a sequence are numbered in the order in which they fill its tiles; the slot of one is
its row in the pool laid flat: tile * tile size + place in the tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import jit, tl, triton

_THREADS = 128


def flat(pool: Tensor) -> Tensor:
    """The slots [T * tile, d] of a pool [T, tile, d], as a view; RuntimeError if there is none."""
    return pool.view(-1, pool.shape[-1])


def slots(table: Tensor, order: Tensor, size: int) -> Tensor:
    """Slots int64 [S, n] of entries `order` [S, n]; -1 where the table [S, blocks] has no tile."""
    block = order // size
    tile = table.long().gather(1, block.clamp_max(table.shape[1] - 1))
    held = (tile >= 0) & (block < table.shape[1])
    return torch.where(held, tile * size + order % size, -1)


def copy_config(keys: Tensor, values: Tensor, loads: int) -> dict[str, int]:
    """Launch parameters of a copy of rows: `loads` loads of 16 bytes a thread of the wider ones."""
    dims = [max(16, triton.next_power_of_2(each.shape[-1])) for each in (keys, values)]
    entries = loads * 16 * _THREADS // (max(dims) * keys.element_size())
    return {
        "ENTRIES": min(64, max(1, entries)),
        "K_DIMS": dims[0],
        "V_DIMS": dims[1],
        "num_warps": _THREADS // 32,
    }


@jit
def slot_of(table, order, inside, t_block, blocks, SIZE: tl.constexpr):
    """Slots int64 [N] of entries `order` [N], -1 where not inside or where there is no tile.

    table: [N], where the row of the table of each one's sequence begins.
    """
    block = order // SIZE
    held = inside & (order >= 0) & (block < blocks)
    tile = tl.load(table + block * t_block, mask=held, other=-1).to(tl.int64)
    return tl.where(tile >= 0, tile * SIZE + order % SIZE, -1)


@jit
def store_rows(base, index, inside, rows, stride, dim, dim_stride, DIMS: tl.constexpr):
    """Write rows [N, DIMS] over the vectors `index` [N] of the matrix at `base`, where inside."""
    d = tl.arange(0, DIMS)
    at = base + index.to(tl.int64)[:, None] * stride + d[None] * dim_stride
    tl.store(at, rows, mask=inside[:, None] & (d < dim)[None])
