"""The cells of one policy on one layer, what they have taken in, and the queries it recalls.

Knows policies; must not know tiles or how a batch is put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods import Held, Policy
from methods.kernels import shared


@dataclass
class Holder:
    """The cells of one policy on one layer.

    cells: their rows in the batch. grown: tokens that each has taken in since the prompt was
    evicted, less those it dropped. text: bool [L], the prompt's text where the policy spares it.
    queries: float32 [C, H, w, d], the last ones times the softmax scale, where the policy recalls
    them.
    """

    policy: Policy
    layer: int
    num_layers: int
    cells: list[int]
    held: list[Held]
    grown: list[int]
    text: Tensor | None = None
    queries: Tensor | None = None
    _sequences: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def select(self, place: Mapping[int, int]) -> Holder:
        """The same for the cells that have a new place."""
        stay = [i for i, cell in enumerate(self.cells) if cell in place]
        return dataclasses.replace(
            self,
            cells=[place[self.cells[i]] for i in stay],
            held=[self.held[i] for i in stay],
            grown=[self.grown[i] for i in stay],
            queries=None if self.queries is None or not stay else self.recalled(stay),
            _sequences={},
        )

    def take(self, new: int, seen: int) -> dict[int, list[int]]:
        """Take `new` tokens in; the cells that drop so many entries."""
        drops: dict[int, list[int]] = {}
        for i, held in enumerate(self.held):
            grown = self.grown[i] + new
            count = self.policy.evictions(held, grown, seen, self.num_layers)
            self.grown[i] = grown - count
            drops.setdefault(count, []).append(i)
        return drops

    def watch(self, query: Tensor, scaling: float) -> None:
        """Note the last of the batch's queries [cells, H, q, d], if the policy recalls them."""
        if self.queries is None:
            return
        own = self.rows(query, range(len(self.cells)))
        both = torch.cat([self.queries, own.float() * scaling], 2)
        self.queries = both[:, :, -self.policy.recalls :]

    def rows(self, batch: Tensor, some: Sequence[int]) -> Tensor:
        """What a batch [cells, ...] has of some of its cells."""
        cells = torch.tensor([self.cells[i] for i in some])
        return batch.index_select(0, shared(cells, batch.device))

    def recalled(self, some: Sequence[int]) -> Tensor:
        """The last queries of some of its cells."""
        assert self.queries is not None
        return self.queries.index_select(0, shared(torch.tensor(some), self.queries.device))

    def sequences(self, some: Sequence[int], heads: int) -> Tensor:
        """Sequences of some of its cells, int64 [C * heads] on the host."""
        key = tuple(some)
        if key not in self._sequences:
            rows = torch.tensor([self.cells[i] for i in some])[:, None] * heads
            self._sequences[key] = (rows + torch.arange(heads)).flatten()
        return self._sequences[key]
