"""Which values of a layer come from the host for a pass, and how much came.

Must not know policies or how the kept positions were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.engine.packed import Packed
from harness.engine.reached import fewest, masses
from harness.engine.reindexed import sequences_of
from harness.engine.tiles import Tiles
from methods.kernels import shared


class Fetched:
    """What each cell has fetched from the host on one layer.

    bytes int64 [cells], passes int64 [cells]: of the cells that there were at first; rows: which of
    them those are that are left.
    """

    def __init__(self, cells: int) -> None:
        self.bytes = torch.zeros(cells, dtype=torch.long)
        self.passes = torch.zeros(cells, dtype=torch.long)
        self.rows = list(range(cells))

    def begin(self, cells: Sequence[int]) -> None:
        """One more pass of these cells."""
        self.passes[[self.rows[each] for each in cells]] += 1

    def note(self, packed: Packed, read: Tensor) -> None:
        """These entries are read, bool [P, step] on the host."""
        assert packed.on_host is not None
        cell = torch.tensor(self.rows)[packed.owner // packed.heads]
        self.bytes.index_add_(0, cell, read.sum(1) * packed.on_host.host_bytes)

    def select(self, rows: Sequence[int]) -> Fetched:
        """The same notes, for these cells from now on."""
        own = Fetched(0)
        own.bytes, own.passes = self.bytes, self.passes
        own.rows = [self.rows[row] for row in rows]
        return own


def chosen(
    packed: Packed, keys: Tensor, tiles: Tiles, query: Tensor, token: Tensor, scaling: float
) -> Tensor:
    """The entries of packed groups that these queries read, bool [P, step] on the host.

    keys [P, step, d] of the groups; query [cells, H, q, d] of the tokens from `token` on, int64
    [1], whose own entries are in the tiles. Those in the tiles are read in any case; of the others
    the fewest are, over all heads of a cell, that reach its share. Waits for the device.
    """
    share = packed.setting.share
    assert share is not None  # their values are on the host
    cells, heads, device = len(packed.cells), packed.heads, keys.device
    sequences = sequences_of(packed.cells, heads)
    new = query.shape[2]
    rows = query.reshape(query.shape[0] * heads, -1, query.shape[3])
    rows = rows.index_select(0, shared(sequences, device))
    table = _table(packed.rows, cells * heads)  # [R, G]
    absent = shared(table < 0, device)[..., None]
    at = shared(table.clamp_min(0), device)
    view = tiles.view(sequences)
    older = packed.places[at].masked_fill(absent, -1).flatten(1)  # [R, G * step]
    every = keys[at].flatten(1, 2), view.vectors(tiles.keys, 0, len(sequences))
    places = torch.cat([older, view.places], 1)
    found = masses(rows, torch.cat(every, 1), places, token, new, scaling)
    here = torch.arange(places.shape[1], device=device) >= older.shape[1]
    flat = found.view(cells, -1)
    reads = fewest(flat, here.expand_as(found).reshape(flat.shape), share)
    reads = reads.view(len(sequences), -1)[:, : older.shape[1]] & (older >= 0)
    groups = reads.view(*table.shape, packed.places.shape[1]).cpu()
    read = torch.zeros(packed.places.shape, dtype=torch.bool)
    read[table[table >= 0]] = groups[table >= 0]
    return read


def _table(rows: Tensor, count: int) -> Tensor:
    """The groups of each row, int64 [count, most], -1 behind the last; rows int64 [P]."""
    order = rows.argsort(stable=True)
    sizes = torch.bincount(rows, minlength=count)
    place = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows[order]]
    table = torch.full((count, int(sizes.max()) if len(rows) else 0), -1)
    table[rows[order], place] = order
    return table
