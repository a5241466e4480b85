"""Some sequences of pools of tiles side by side, padded to the longest of them.

Must not know who owns the pools or why they are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.kernels import shared


class Look:
    """Where the tiles of some sequences of joined pools are, sent to the device once.

    own: these sequences int64 [s] on the host, each part of them in one pool after the other.
    """

    def __init__(
        self, tables: Sequence[Tensor], parts: Sequence[Tensor], device: torch.device
    ) -> None:
        """tables: of each pool, int64 [S, n] on the host, the tiles of a sequence; parts: int64
        [s], the same sequences of each pool.
        """
        self.tables, self.device = tables, device
        self.total = sum(map(len, tables))
        widest, start, all_tiles = max(each.shape[1] for each in tables), 0, []
        for table in tables:
            moved = torch.where(table < 0, -1, table + start)
            all_tiles.append(pad(moved, (0, widest - table.shape[1]), value=-1))
            start += int(table.max()) + 1
        size = len(tables[0])
        self.own = torch.cat([own + size * i for own in parts for i in range(len(tables))])
        self.sequences = shared(self.own, device)
        self._table = torch.cat(all_tiles)[self.own]
        self.blocks = 0

    def reach(self, blocks: int) -> None:
        """Look at the first `blocks` tiles of each."""
        if blocks == self.blocks:
            return
        self.blocks, device = blocks, self.device
        table = self._table[:, :blocks]  # [s, blocks], -1 where a sequence is shorter
        flat = table.flatten()
        present = (flat >= 0).nonzero()[:, 0]
        self.index = shared(table.clamp_min(0).flatten(), device)
        self.absent = shared(table < 0, device) if len(present) < len(flat) else None
        self.tiles, self.present = shared(flat[present], device), shared(present, device)
        self.shape = tuple(table.shape)


class View:
    """Sequences side by side, padded to the longest: [s, n], n a multiple of the tile size.

    counts int64 [s], on the host: their entries; places int64 [s, n].
    """

    def __init__(self, places: Tensor, look: Look, counts: Tensor) -> None:
        """places int64 [T, tile] of the joined pools."""
        self._look, self.counts = look, counts
        held = places.index_select(0, look.index).view(*look.shape, -1)
        if look.absent is not None:
            held = torch.where(look.absent[..., None], -1, held)
        self.places = held.view(look.shape[0], -1)

    def pick(self, pool: Tensor) -> Tensor:
        """Entries [T, tile] of the pool as [s, n]; padding holds anything."""
        return pool.index_select(0, self._look.index).view(self._look.shape[0], -1)

    def vectors(self, pool: Tensor, first: int, count: int) -> Tensor:
        """Vectors [T, tile, d] of the pool as [count, n, d], of `count` sequences from the `first`
        on; padding holds anything.
        """
        wide = self._look.shape[1]
        own = self._look.index[first * wide : (first + count) * wide]
        return pool.index_select(0, own).view(count, -1, pool.shape[-1])

    def rows(self, weights: Tensor, count: int | None = None) -> Tensor:
        """Rows [T, R, tile] of tiles or [S, R, n] of sequences as [s, R, n]; of the first `count`.

        They are zero where there is no entry.
        """
        look = self._look
        if len(weights) == look.total:  # of sequences; with a tile each both are the same
            own = weights[..., : self.places.shape[1]]
            return own.index_select(0, look.sequences[:count])
        own = look.index if count is None else look.index[: count * look.shape[1]]
        picked = weights.index_select(0, own).unflatten(0, (-1, look.shape[1]))
        if look.absent is not None:
            picked.masked_fill_(look.absent[:count, :, None, None], 0.0)
        return picked.transpose(1, 2).flatten(2)

    def put(self, pool: Tensor, entries: Tensor) -> None:
        """Write entries [s, n] back to the pool [T, tile]."""
        split = entries.reshape(len(self._look.index), -1)
        if self._look.absent is not None:
            split = split.index_select(0, self._look.present)
        pool.index_copy_(0, self._look.tiles, split)


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Parts one behind the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
