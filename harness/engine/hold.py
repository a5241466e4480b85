"""Cells that hold their budget: after every step their policy evicts what is over it.

Knows policies and tiles; must not know models or how a batch is put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.tiles import Tiles, View
from methods import Held, Policy, Step, victims


@dataclass
class Holder:
    """The cells of one policy on one layer.

    cells: their rows in the batch. grown: tokens that each has taken in since the prompt was
    evicted, less those it dropped.
    """

    policy: Policy
    layer: int
    num_layers: int
    cells: list[int]
    held: list[Held]
    grown: list[int]

    def select(self, place: Mapping[int, int]) -> Holder:
        """The same for the cells that have a new place."""
        stay = [i for i, cell in enumerate(self.cells) if cell in place]
        return dataclasses.replace(
            self,
            cells=[place[self.cells[i]] for i in stay],
            held=[self.held[i] for i in stay],
            grown=[self.grown[i] for i in stay],
        )

    def evict(self, tiles: Tiles, heads: int, weights: Tensor, new: int, seen: int) -> None:
        """Let the policy see `new` tokens with their attention weights [T, R, tile], then evict."""
        drops: dict[int, list[int]] = {}
        for i, held in enumerate(self.held):
            self.grown[i] += new
            count = self.policy.evictions(held, self.grown[i], seen, self.num_layers)
            self.grown[i] -= count
            drops.setdefault(count, []).append(i)
        for count, some in drops.items():
            if count or self.policy.observes:
                self._evict(tiles, heads, weights, new, seen, count, some)

    def _evict(
        self,
        tiles: Tiles,
        heads: int,
        weights: Tensor,
        new: int,
        seen: int,
        count: int,
        some: list[int],
    ) -> None:
        """The part of `evict` for cells that drop equally many entries a head."""
        rows = torch.tensor([self.cells[i] for i in some])[:, None] * heads + torch.arange(heads)
        sequences = rows.flatten()
        view = tiles.view(sequences)
        shape = (len(some), heads, -1)
        observes = self.policy.observes
        step = Step(
            held=[self.held[i] for i in some],
            positions=view.places.view(shape),
            budgets=(tiles.counts[sequences] - count).view(shape[:2]).to(weights.device),
            seen=seen,
            new=new,
            layer=self.layer,
            num_layers=self.num_layers,
            attention=_rows(view, weights, len(some), new) if observes else None,
            carried=view.pick(tiles.carried).view(shape) if tiles.carried is not None else None,
        )
        carried = None
        if observes:
            assert tiles.carried is not None  # filled from Selection.carried when it was built
            carried = self.policy.carry(step)
            view.put(tiles.carried, carried.reshape(len(sequences), -1))
        if count:
            standing = self.policy.standing(step, carried).expand_as(step.positions)
            chosen = victims(standing, step.positions, count)
            tiles.evict(sequences, chosen.flatten(0, 1))


def _rows(view: View, weights: Tensor, cells: int, new: int) -> Tensor:
    """Attention of the new tokens, float32 [C, H, new, n]."""
    rows = view.rows(weights)  # [C * Hkv, g * new, n]
    return rows.reshape(cells, -1, new, rows.shape[-1])
