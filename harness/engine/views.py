"""Some sequences of a pool of tiles side by side, padded to the longest of them.

Must not know who owns the pool or why it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kernels import shared


class Look:
    """Where the tiles of some sequences are, sent to the device once."""

    def __init__(self, table: Tensor, sequences: Tensor, blocks: int, device: torch.device) -> None:
        """table int64 [S, n] on the host, the tiles of a sequence; of these, `blocks` at most."""
        self.total = len(table)
        table = table[sequences, :blocks]  # [s, blocks], -1 where a sequence is shorter
        flat = table.flatten()
        present = (flat >= 0).nonzero()[:, 0]
        self.index = shared(table.clamp_min(0).flatten(), device)
        self.absent = shared(table < 0, device) if len(present) < len(flat) else None
        self.tiles, self.present = shared(flat[present], device), shared(present, device)
        self.sequences = shared(sequences, device)
        self.shape = tuple(table.shape)


class View:
    """Sequences side by side, padded to the longest: [s, n], n a multiple of the tile size.

    counts int64 [s], on the host: their entries; places int64 [s, n].
    """

    def __init__(self, places: Tensor, look: Look, counts: Tensor) -> None:
        """places int64 [T, tile] of the pool."""
        self._look, self.counts = look, counts
        held = places.index_select(0, look.index).view(*look.shape, -1)
        if look.absent is not None:
            held.masked_fill_(look.absent[..., None], -1)
        self.places = held.view(look.shape[0], -1)

    def pick(self, pool: Tensor) -> Tensor:
        """Entries [T, tile] of the pool as [s, n]; padding holds anything."""
        return pool.index_select(0, self._look.index).view(self._look.shape[0], -1)

    def rows(self, weights: Tensor, count: int | None = None) -> Tensor:
        """Rows [T, R, tile] of tiles or [S, R, n] of sequences as [s, R, n]; of the first `count`.

        They are zero where there is no entry.
        """
        look = self._look
        if len(weights) == look.total:  # of sequences; with a tile each both are the same
            own = weights.index_select(0, look.sequences[:count])
            return own[..., : self.places.shape[1]]
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
