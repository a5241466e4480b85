"""Entries of a layer that are stored otherwise than as they are: groups of each sequence.

Must not know models, policies or why an entry is packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.engine.columns import Column, OnHost
from harness.engine.reindexed import sequences_of
from harness.settings.caches import Storage
from methods.kernels import shared


@dataclass(frozen=True, eq=False)
class Packed:
    """The packed entries of the cells of one setting: P groups of up to `setting.step` entries.

    cells: their rows in the batch, each of `heads` sequences. keys, values: of the groups; places
    int64 [P, step], -1 where there is no entry. On the host: owner int64 [P], the sequence of each
    group, those of one sequence in the order of their age; filled int64 [P], entries of each, the
    first so many of it.
    """

    setting: Storage
    cells: tuple[int, ...]
    heads: int
    keys: Column
    values: Column
    places: Tensor
    owner: Tensor
    filled: Tensor

    @property
    def rows(self) -> Tensor:
        """Which sequence of its own cells each group belongs to, int64 [P] on the host."""
        return rows_of(self.owner, self.cells, self.heads)

    @property
    def on_host(self) -> OnHost | None:
        """Its values, where they are on the host."""
        return self.values if isinstance(self.values, OnHost) else None

    def able(self) -> Tensor:
        """Sequences that can pack more entries, int64 on the host."""
        own = sequences_of(self.cells, self.heads)
        return own if self.keys.able is None else own[self.keys.able]

    def counts(self, sequences: int) -> Tensor:
        """Entries of each of so many sequences, int64 on the host."""
        return torch.zeros(sequences, dtype=torch.long).index_add_(0, self.owner, self.filled)

    def sizes(self, sequences: int) -> Tensor:
        """Bytes of each sequence on the device: of its entries and of what they share."""
        entry = self.keys.entry_bytes + self.values.entry_bytes
        group = self.keys.group_bytes + self.values.group_bytes
        found = torch.zeros(sequences, dtype=torch.long)
        found.index_add_(0, self.owner, self.filled * entry + group)
        for column in (self.keys, self.values):
            if column.row_bytes is not None:
                own = sequences_of(self.cells, self.heads)
                found.index_add_(0, own, column.row_bytes)
        return found

    def host_sizes(self, sequences: int) -> Tensor:
        """Bytes of each sequence on the host."""
        return self.counts(sequences) * (self.on_host.host_bytes if self.on_host else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is packed, on the device."""
        return self.keys.nbytes + self.values.nbytes

    def extended(
        self, keys: Tensor, values: Tensor, places: Tensor, owner: Tensor, filled: Tensor
    ) -> Packed:
        """These groups, and later ones of its cells behind them: keys [p, step, d] and so on."""
        rows = shared(rows_of(owner, self.cells, self.heads), places.device)
        present = places >= 0
        return replace(
            self,
            keys=self.keys.extended(keys, present, rows),
            values=self.values.extended(values, present, rows),
            places=torch.cat([self.places, places]),
            owner=torch.cat([self.owner, owner]),
            filled=torch.cat([self.filled, filled]),
        )

    def select(self, place: Mapping[int, int]) -> Packed:
        """The same for the cells that have a new place."""
        at = [i for i, cell in enumerate(self.cells) if cell in place]
        moved = torch.full((max(self.cells) + 1,), -1)
        stay = [self.cells[i] for i in at]
        moved[stay] = torch.tensor([place[cell] for cell in stay], dtype=torch.long)
        cell = moved[self.owner // self.heads]
        kept = (cell >= 0).nonzero()[:, 0]
        rows = sequences_of(at, self.heads)
        return replace(
            self,
            cells=tuple(place[cell] for cell in stay),
            keys=self.keys.select(kept, rows),
            values=self.values.select(kept, rows),
            places=self.places[shared(kept, self.places.device)],
            owner=(cell * self.heads + self.owner % self.heads)[kept],
            filled=self.filled[kept],
        )


def rows_of(owner: Tensor, cells: tuple[int, ...], heads: int) -> Tensor:
    """Sequences of a batch as those of these cells alone, int64 on the host."""
    place = torch.zeros(max(cells) + 1, dtype=torch.long)
    place[list(cells)] = torch.arange(len(cells))
    return place[owner // heads] * heads + owner % heads
