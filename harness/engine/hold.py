"""Cells that hold their budget: after every step their policy evicts what is over it.

Knows policies and tiles; must not know models or how a batch is put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.tiles import Tiles, View
from methods import Held, Policy, Step
from methods.kernels import shared

Choice = tuple[Tensor, Tensor]  # sequences [s] on the host, and the order [s, m] of what goes


@dataclass
class Holder:
    """The cells of one policy on one layer.

    cells: their rows in the batch. grown: tokens that each has taken in since the prompt was
    evicted, less those it dropped. text: bool [L], the prompt's text where the policy spares it.
    """

    policy: Policy
    layer: int
    num_layers: int
    cells: list[int]
    held: list[Held]
    grown: list[int]
    text: Tensor | None = None

    def select(self, place: Mapping[int, int]) -> Holder:
        """The same for the cells that have a new place."""
        stay = [i for i, cell in enumerate(self.cells) if cell in place]
        return dataclasses.replace(
            self,
            cells=[place[self.cells[i]] for i in stay],
            held=[self.held[i] for i in stay],
            grown=[self.grown[i] for i in stay],
        )

    def choose(
        self, tiles: Tiles, heads: int, weights: Tensor | None, new: int, seen: int
    ) -> Iterator[Choice]:
        """Show the policy `new` tokens, if it observes with weights [T, R, tile]; what it drops."""
        drops: dict[int, list[int]] = {}
        for i, held in enumerate(self.held):
            self.grown[i] += new
            count = self.policy.evictions(held, self.grown[i], seen, self.num_layers)
            self.grown[i] -= count
            drops.setdefault(count, []).append(i)
        for count, some in drops.items():
            if count or self.policy.observes:
                yield self._choose(tiles, heads, weights, new, seen, count, some)

    def _choose(
        self,
        tiles: Tiles,
        heads: int,
        weights: Tensor | None,
        new: int,
        seen: int,
        count: int,
        some: list[int],
    ) -> Choice:
        """The part of `choose` for cells that drop equally many entries a head."""
        rows = torch.tensor([self.cells[i] for i in some])[:, None] * heads + torch.arange(heads)
        sequences = rows.flatten()
        view = tiles.view(sequences)
        shape = (len(some), heads, -1)
        positions = view.places.view(shape)
        step = Step(
            held=[self.held[i] for i in some],
            positions=positions,
            budgets=shared((tiles.counts[sequences] - count).view(shape[:2]), positions.device),
            seen=seen,
            new=new,
            layer=self.layer,
            num_layers=self.num_layers,
            attention=_rows(view, weights, len(some), new) if self.policy.observes else None,
            carried=view.pick(tiles.carried).view(shape) if tiles.carried is not None else None,
            text=None if self.text is None else _marked(self.text, positions),
        )
        carried = self.policy.carry(step)
        if carried is not None and tiles.carried is not None:
            view.put(tiles.carried, carried.reshape(len(sequences), -1))
        if not count:
            return sequences, positions.new_empty(len(sequences), 0)
        return sequences, self.policy.drop(step, carried, count).flatten(0, 1)


def evict(
    holders: Sequence[Holder],
    tiles: Tiles,
    heads: int,
    weights: Tensor | None,
    new: int,
    seen: int,
) -> None:
    """Let the policies see `new` tokens (`Holder.choose`), then drop what they choose, together."""
    chosen: dict[int, list[Choice]] = {}
    for holder in holders:
        for choice in holder.choose(tiles, heads, weights, new, seen):
            chosen.setdefault(choice[1].shape[1], []).append(choice)
    for count, choices in chosen.items():
        if count:
            sequences, order = zip(*choices, strict=True)
            tiles.evict(torch.cat(sequences), torch.cat(order))


def _marked(text: Tensor, positions: Tensor) -> Tensor:
    """Whether entries at these positions are text of the prompt, text bool [L]."""
    inside = (positions >= 0) & (positions < len(text))
    return text[positions.clamp(0, len(text) - 1)] & inside


def _rows(view: View, weights: Tensor | None, cells: int, new: int) -> Tensor:
    """Attention of the new tokens, float32 [C, H, new, n]."""
    assert weights is not None
    rows = view.rows(weights)  # [C * Hkv, g * new, n]
    return rows.reshape(cells, -1, new, rows.shape[-1])
