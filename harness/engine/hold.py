"""Cells that hold their budget: after every step their policy evicts what is over it.

Knows policies and tiles; must not know models or how a batch is put together.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.engine.tiles import Tiles
from harness.engine.views import View, joined
from methods import Due, Held, Policy, Rule, Step, victims
from methods.kernels import by_triton, lowest_entries, shared
from methods.kernels.lowest_entries import BY_PLACE


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
    _sequences: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def select(self, place: Mapping[int, int]) -> Holder:
        """The same for the cells that have a new place."""
        stay = [i for i, cell in enumerate(self.cells) if cell in place]
        return dataclasses.replace(
            self,
            cells=[place[self.cells[i]] for i in stay],
            held=[self.held[i] for i in stay],
            grown=[self.grown[i] for i in stay],
            _sequences={},
        )

    def take(self, new: int, seen: int) -> list[Part]:
        """Take `new` tokens in: cells that drop equally many entries, or none but look on."""
        drops: dict[int, list[int]] = {}
        for i, held in enumerate(self.held):
            grown = self.grown[i] + new
            count = self.policy.evictions(held, grown, seen, self.num_layers)
            self.grown[i] = grown - count
            drops.setdefault(count, []).append(i)
        shown = self.policy.observes
        return [Part(self, count, some) for count, some in drops.items() if count or shown]

    def sequences(self, some: Sequence[int], heads: int) -> Tensor:
        """Sequences of some of its cells, int64 [C * heads] on the host."""
        key = tuple(some)
        if key not in self._sequences:
            rows = torch.tensor([self.cells[i] for i in some])[:, None] * heads
            self._sequences[key] = (rows + torch.arange(heads)).flatten()
        return self._sequences[key]


@dataclass
class Part:
    """Cells of a holder that drop `count` entries a head; some: which of its cells."""

    holder: Holder
    count: int
    some: list[int]

    def rule(self, budgets: Tensor, seen: int, device: torch.device) -> Rule | None:
        """What goes of each head with these budgets [C, Hkv] (on the host), if a rule tells."""
        holder = self.holder
        if self.count > 1 or holder.text is not None:
            return None
        held = [holder.held[i] for i in self.some]
        return holder.policy.rule(Due(held, budgets, seen, holder.layer, holder.num_layers, device))

    def step(
        self,
        positions: Tensor,
        budgets: Tensor,
        seen: int,
        new: int,
        rows: Tensor | None,
        carried: Tensor | None,
    ) -> Step:
        """What the policy sees of positions [s, n], budgets [s], rows [s, g * new, n] and so on."""
        cells, holder, text = len(self.some), self.holder, self.holder.text
        shape = (cells, len(positions) // cells, -1)
        places = positions.view(shape)
        return Step(
            held=[holder.held[i] for i in self.some],
            positions=places,
            budgets=budgets.view(shape[:2]),
            seen=seen,
            new=new,
            layer=holder.layer,
            num_layers=holder.num_layers,
            attention=None if rows is None else rows.reshape(cells, -1, new, rows.shape[-1]),
            carried=None if carried is None else carried.view(shape),
            text=None if text is None else _marked(text, places),
        )


def evict(
    holders: Sequence[Holder],
    tiles: Tiles,
    heads: int,
    weights: Tensor | None,
    new: int,
    seen: int,
) -> None:
    """Show the policies `new` tokens, those that observe with weights [T, R, tile]; drop entries.

    All cells are looked at together, and all that drop equally many entries drop them together.
    """
    parts = [part for holder in holders for part in holder.take(new, seen)]
    if by_triton(tiles.keys, tiles.values):
        parts = _evict_by_rules(parts, tiles, heads, weights, new, seen)
    if not parts:
        return
    parts.sort(key=lambda part: not part.holder.policy.observes)
    sequences = [part.holder.sequences(part.some, heads) for part in parts]
    sizes = [len(own) for own in sequences]
    every = joined(sequences)
    view = tiles.view(every)
    positions = view.places.split(sizes)
    held = shared(view.counts, view.places.device).split(sizes)
    carried = () if tiles.carried is None else view.pick(tiles.carried).split(sizes)
    remembered = list(carried)
    rows = _rows(view, weights, parts, sizes)
    standing: dict[int, list[tuple[int, Tensor]]] = {}
    for i, part in enumerate(parts):
        policy = part.holder.policy
        before = carried[i] if carried else None
        step = part.step(positions[i], held[i] - part.count, seen, new, rows[i], before)
        fresh = policy.carry(step)
        if fresh is not None and carried:
            remembered[i] = fresh.flatten(0, 1)
        if part.count:
            ranked = policy.ranked(step, fresh).flatten(0, 1)
            standing.setdefault(part.count, []).append((i, ranked))
    if tiles.carried is not None and any(map(operator.is_not, remembered, carried)):
        view.put(tiles.carried, joined(remembered))
    for count, found in sorted(standing.items(), reverse=True):
        whole = len(found) == len(parts)
        own = every if whole else joined([sequences[i] for i, _ in found])
        places = view.places if whole else joined([positions[i] for i, _ in found])
        tiles.evict(own, victims(joined([ranked for _, ranked in found]), places, count))


def _evict_by_rules(
    parts: Sequence[Part], tiles: Tiles, heads: int, weights: Tensor | None, new: int, seen: int
) -> list[Part]:
    """`evict` for those whose policies have a rule, by one kernel; the others are left."""
    left, listed, rules, dropping = [], [], [], []
    given: list[Tensor] = []
    for part in parts:
        own = part.holder.sequences(part.some, heads)
        budgets = (tiles.counts[own] - part.count).view(-1, heads)
        rule = part.rule(budgets, seen, tiles.keys.device)
        if rule is None:
            left.append(part)
            continue
        listed.append(own)
        told = torch.stack([rule.by, rule.first, rule.last], -1).flatten(0, 1)  # [s, 3]
        if rule.given is not None:
            told[told[:, 0] == BY_PLACE, 1] += sum(len(each) for each in given)
            given.append(rule.given)
        rules.append(told)
        dropping.append(torch.full_like(own, part.count, dtype=torch.bool))
    if not listed:
        return left
    every, drops, device = joined(listed), joined(dropping), tiles.keys.device
    order = lowest_entries(
        tiles.places,
        weights,
        tiles.carried,
        tiles.device_table,
        tiles.device_counts,
        shared(every, device),
        shared(joined(rules), device),
        heads,
        new,
        seen,
        joined(given) if given else None,
    )
    if not bool(drops.all()):
        every, order = every[drops], order[shared(drops.nonzero()[:, 0], device)]
    if len(every):
        tiles.evict(every, order)
    return left


def _rows(
    view: View, weights: Tensor | None, parts: Sequence[Part], sizes: Sequence[int]
) -> list[Tensor | None]:
    """Rows [s, R, n] of each part whose policy observes, which come first; None for the others."""
    watched = [size for part, size in zip(parts, sizes, strict=True) if part.holder.policy.observes]
    rest: list[Tensor | None] = [None] * (len(parts) - len(watched))
    if not watched:
        return rest
    assert weights is not None  # the attention is computed with them where a policy observes
    return [*view.rows(weights, sum(watched)).split(watched), *rest]


def _marked(text: Tensor, positions: Tensor) -> Tensor:
    """Whether entries at these positions are text of the prompt, text bool [L]."""
    inside = (positions >= 0) & (positions < len(text))
    return text[positions.clamp(0, len(text) - 1)] & inside
