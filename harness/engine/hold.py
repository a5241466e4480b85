"""Cells that hold their budget: after every step their policy evicts what is over it.

Knows policies and tiles; must not know models or how a batch is put together.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.engine.contest import Contest, Ranked
from harness.engine.holder import Holder
from harness.engine.tiles import Tiles
from harness.engine.views import View, joined
from methods import Due, Held, Policy, Rule, Step, victims
from methods.kernels import by_triton, lowest_entries, shared
from methods.kernels.lowest_entries import BY_PLACE


class Shown(NamedTuple):
    """A layer that has taken in `new` tokens, `seen` in all: who evicts from which tiles.

    weights: of these tokens, [T, R, tile] or [S, R, n] as of ragged_attention; None unless a policy
    observes. hidden: [cells, new, C], what entered attention; None unless a policy sees it.
    contest: where layers wait for each other whose entries compete.
    """

    holders: Sequence[Holder]
    tiles: Tiles
    heads: int
    weights: Tensor | None
    new: int
    seen: int
    hidden: Tensor | None = None
    contest: Contest | None = None

    def spans(self) -> bool:
        """Whether its policies can look at several layers at once."""
        policies = [holder.policy for holder in self.holders]
        return all(policy.spans_layers and not policy.competes for policy in policies)

    def kind(self) -> object:
        """Layers of one kind can evict together."""
        shape = None
        if self.weights is not None:
            shape = (len(self.weights) == len(self.tiles.table), self.weights.shape[1:])
        return self.heads, self.tiles.size, shape


@dataclass
class Part:
    """Cells that drop `count` entries a head; some: which cells of a holder.

    holders: those of one policy, a layer each.
    """

    holders: Sequence[Holder]
    count: int
    some: list[int]

    @property
    def policy(self) -> Policy:
        """Whose cells they are."""
        return self.holders[0].policy

    def held(self) -> list[Held]:
        """Its cells on one layer after the other."""
        return [holder.held[i] for holder in self.holders for i in self.some]

    def ranked(self, tiles: Tiles, sequences: Tensor, step: Step, standing: Tensor) -> Ranked:
        """What its cells enter a contest with; of one layer, as who competes spans none."""
        (holder,) = self.holders
        who = id(self.policy), *(holder.cells[i] for i in self.some)
        return Ranked(
            who, self.count, holder.num_layers, tiles, sequences, step.positions, standing
        )

    def rule(self, budgets: Tensor, seen: int, device: torch.device) -> Rule | None:
        """What goes of each head with these budgets [C, Hkv] (on the host), if a rule tells."""
        holder = self.holders[0]
        if self.count > 1 or self.policy.spares or self.policy.competes:
            return None
        due = Due(self.held(), budgets, seen, holder.layer, holder.num_layers, device)
        return self.policy.rule(due)

    def step(
        self,
        positions: Tensor,
        budgets: Tensor,
        seen: int,
        new: int,
        rows: Tensor | None,
        carried: Tensor | None,
        keys: Tensor | None,
        hidden: Tensor | None = None,
    ) -> Step:
        """What the policy sees of positions [s, n], budgets [s], rows [s, g * new, n] and so on."""
        held, holder = self.held(), self.holders[0]
        cells, text = len(held), holder.text
        shape = (cells, len(positions) // cells, -1)
        places = positions.view(shape)
        layer: int | Tensor = holder.layer
        if len(self.holders) > 1:
            layers = [each.layer for each in self.holders for _ in self.some]
            layer = torch.tensor(layers)[:, None, None]
        return Step(
            held=held,
            positions=places,
            budgets=budgets.view(shape[:2]),
            seen=seen,
            new=new,
            layer=layer,
            num_layers=holder.num_layers,
            attention=None if rows is None else rows.reshape(cells, -1, new, rows.shape[-1]),
            carried=None if carried is None else carried.view(shape),
            text=None if text is None else _marked(text, places),
            keys=None if keys is None else keys.unflatten(0, shape[:2]),
            queries=None if keys is None else self._queries(),
            hidden=None if hidden is None else holder.rows(hidden, self.some),
        )

    def _queries(self) -> Tensor:
        """The last queries of its cells, float32 [C, H, w, d]."""
        return joined([holder.recalled(self.some) for holder in self.holders])


def evict(layers: Sequence[Shown]) -> None:
    """Show the policies the new tokens of layers of one kind; drop entries.

    Several layers have the same holders, and are in plain torch.
    """
    first = layers[0]
    parts = [
        part
        for holders in zip(*(each.holders for each in layers), strict=True)
        for part in _take(holders, first.new, first.seen)
    ]
    if by_triton(first.tiles.keys, first.tiles.values):
        parts = _evict_by_rules(parts, first)
    if parts:
        parts.sort(key=lambda part: not part.policy.observes)
        _evict_by_standing(parts, layers)


def _evict_by_standing(parts: Sequence[Part], layers: Sequence[Shown]) -> None:
    """`evict` with what policies say of each entry.

    All cells are looked at together, and all that drop equally many entries drop them together.
    """
    tiles, first = [each.tiles for each in layers], layers[0]
    sequences = [part.holders[0].sequences(part.some, first.heads) for part in parts]
    view = Tiles.view_all(tiles, sequences)
    sizes = [len(own) * len(layers) for own in sequences]
    positions = view.places.split(sizes)
    held = shared(view.counts, view.places.device).split(sizes)
    pools = [each.carried for each in tiles if each.carried is not None]
    memory = joined(pools) if pools else None
    carried = () if memory is None else view.pick(memory).split(sizes)
    remembered = list(carried)
    rows = _rows(view, [each.weights for each in layers], parts, sizes)
    standing: dict[int, list[tuple[int, Tensor]]] = {}
    entries: list[Ranked] = []
    recalled = any(part.count and part.policy.recalls for part in parts)
    pool = joined([each.keys for each in tiles]) if recalled else None
    for i, part in enumerate(parts):
        before = carried[i] if carried else None
        budgets = held[i] - part.count
        keys = None
        if part.count and part.policy.recalls and pool is not None:
            keys = view.vectors(pool, sum(sizes[:i]), sizes[i])
        hidden = first.hidden if part.policy.sees_hidden else None  # of one layer: none spans
        step = part.step(
            positions[i], budgets, first.seen, first.new, rows[i], before, keys, hidden
        )
        fresh = part.policy.carry(step)
        if fresh is not None and carried:
            remembered[i] = fresh.flatten(0, 1)
        if part.count:
            ranked = part.policy.ranked(step, fresh)
            if part.policy.competes:
                entries.append(part.ranked(tiles[0], sequences[i], step, ranked))
                continue
            standing.setdefault(part.count, []).append((i, ranked.flatten(0, 1)))
    if memory is not None and any(map(operator.is_not, remembered, carried)):
        view.put(memory, joined(remembered))
        for each, pool in zip(tiles, memory.split([len(pool) for pool in pools]), strict=True):
            each.carried = pool
    for count, found in sorted(standing.items(), reverse=True):
        whole = len(found) == len(parts)
        places = view.places if whole else joined([positions[i] for i, _ in found])
        gone = victims(joined([ranked for _, ranked in found]), places, count)
        own = joined([sequences[i] for i, _ in found])
        parted = gone.split([sizes[i] for i, _ in found])
        order = joined([each.view(len(layers), -1, count) for each in parted], 1)
        for each, orders in zip(tiles, order, strict=True):
            each.evict(own, orders)
    for entry in entries:  # behind all that is written to the tiles
        assert first.contest is not None
        first.contest.enter(entry)


def _take(holders: Sequence[Holder], new: int, seen: int) -> list[Part]:
    """Let the holders of a policy take `new` tokens in: cells that drop equally many entries, or
    none but look on. Cells drop as many on each layer.
    """
    drops = holders[0].take(new, seen)
    for other in holders[1:]:
        other.grown = [*holders[0].grown]
    shown = holders[0].policy.follows
    return [Part(holders, count, some) for count, some in drops.items() if count or shown]


def _evict_by_rules(parts: Sequence[Part], shown: Shown) -> list[Part]:
    """`evict` for those whose policies have a rule, by one kernel; the others are left."""
    tiles, heads = shown.tiles, shown.heads
    left, listed, rules, dropping = [], [], [], []
    given: list[Tensor] = []
    for part in parts:
        own = part.holders[0].sequences(part.some, heads)
        budgets = (tiles.counts[own] - part.count).view(-1, heads)
        rule = part.rule(budgets, shown.seen, tiles.keys.device)
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
        shown.weights,
        tiles.carried,
        tiles.device_table,
        tiles.device_counts,
        shared(every, device),
        shared(joined(rules), device),
        heads,
        shown.new,
        shown.seen,
        joined(given) if given else None,
    )
    if not bool(drops.all()):
        every, order = every[drops], order[shared(drops.nonzero()[:, 0], device)]
    if len(every):
        tiles.evict(every, order)
    return left


def _rows(
    view: View, weights: Sequence[Tensor | None], parts: Sequence[Part], sizes: Sequence[int]
) -> list[Tensor | None]:
    """Rows [s, R, n] of each part whose policy observes, which come first; None for the others."""
    watched = [size for part, size in zip(parts, sizes, strict=True) if part.policy.observes]
    rest: list[Tensor | None] = [None] * (len(parts) - len(watched))
    if not watched:
        return rest
    own = joined([each for each in weights if each is not None])  # all, where a policy observes
    return [*view.rows(own, sum(watched)).split(watched), *rest]


def _marked(text: Tensor, positions: Tensor) -> Tensor:
    """Whether entries at these positions are text of the prompt, text bool [L]."""
    inside = (positions >= 0) & (positions < len(text))
    return text[positions.clamp(0, len(text) - 1)] & inside
