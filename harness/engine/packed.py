"""Entries of a layer in few bits: groups of each sequence, packed, and read back as they are asked.

Must not know models, policies or why an entry is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.engine.quantize import Coded, by_channel, by_token, from_channels, from_tokens
from harness.settings.caches import Quantized
from methods.kernels import shared


@dataclass(frozen=True, eq=False)
class Packed:
    """The packed entries of the cells of one setting: P groups of up to `setting.group` entries.

    cells: their rows in the batch. keys: codes of [P, group, dims[0]]; values: of [P, group,
    dims[1]]; places int64 [P, group], -1 where there is no entry. dtype: of what comes back. On the
    host: owner int64 [P], the sequence of each group, those of one sequence in the order of their
    age; filled int64 [P], entries of each, the first so many of it.
    """

    setting: Quantized
    cells: tuple[int, ...]
    keys: Coded
    values: Coded
    places: Tensor
    owner: Tensor
    filled: Tensor
    dims: tuple[int, int]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        setting: Quantized,
        cells: Sequence[int],
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        owner: Tensor,
        filled: Tensor,
    ) -> Packed:
        """Pack keys [P, group, d] and values [P, group, dv]; each group has an entry."""
        present = places >= 0
        dims = keys.shape[-1], values.shape[-1]
        return cls(
            setting,
            tuple(cells),
            by_channel(keys, present, setting.bits),
            by_token(values, setting.group, setting.bits),
            places,
            owner,
            filled,
            dims,
            keys.dtype,
        )

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """Keys [P, group, d] and values [P, group, dv] as they are stored."""
        bits, group = self.setting.bits, self.setting.group
        return (
            from_channels(self.keys, bits, self.dims[0], self.dtype),
            from_tokens(self.values, bits, self.dims[1], group, self.dtype),
        )

    def counts(self, sequences: int) -> Tensor:
        """Entries of each of so many sequences, int64 on the host."""
        return torch.zeros(sequences, dtype=torch.long).index_add_(0, self.owner, self.filled)

    def sizes(self, sequences: int) -> Tensor:
        """Bytes of each sequence: of the codes of its entries, and of all its steps and zeros."""
        keys, values = self.keys, self.values
        entry = keys.codes.shape[-1] + values.codes.shape[-1]
        entry += 2 * values.step.shape[-1] * values.step.element_size()
        group = 2 * keys.step.shape[-1] * keys.step.element_size()
        own = self.filled * entry + group
        return torch.zeros(sequences, dtype=torch.long).index_add_(0, self.owner, own)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is packed."""
        return self.keys.nbytes + self.values.nbytes

    def ranks(self, sequences: int) -> Tensor:
        """How many packed entries of its sequence come before each group, int64 [P]."""
        order = self.owner.argsort(stable=True)
        filled = self.filled[order]
        before = filled.cumsum(0) - filled
        counts = self.counts(sequences)
        first = counts.cumsum(0) - counts
        ranks = torch.empty_like(before)
        ranks[order] = before - first[self.owner[order]]
        return ranks

    def joined(self, later: Packed) -> Packed:
        """These groups, and later ones of the same cells behind them."""
        pairs = zip((*self.keys, *self.values), (*later.keys, *later.values), strict=True)
        coded = [torch.cat(pair) for pair in pairs]
        return replace(
            self,
            keys=Coded(*coded[:3]),
            values=Coded(*coded[3:]),
            places=torch.cat([self.places, later.places]),
            owner=torch.cat([self.owner, later.owner]),
            filled=torch.cat([self.filled, later.filled]),
        )

    def select(self, place: dict[int, int], heads: int) -> Packed:
        """The same for the cells that have a new place."""
        stay = [cell for cell in self.cells if cell in place]
        moved = torch.full((max(self.cells) + 1,), -1)
        moved[stay] = torch.tensor([place[cell] for cell in stay], dtype=torch.long)
        cell = moved[self.owner // heads]
        kept = (cell >= 0).nonzero()[:, 0]
        own = shared(kept, self.places.device)
        return replace(
            self,
            cells=tuple(place[cell] for cell in stay),
            keys=Coded(*(each[own] for each in self.keys)),
            values=Coded(*(each[own] for each in self.values)),
            places=self.places[own],
            owner=(cell * heads + self.owner % heads)[kept],
            filled=self.filled[kept],
        )
