"""Entries of all layers that compete for the budget of a cell: layers wait for the last of a pass.

Must not know how entries are ranked, models or how a batch is put together.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from harness.engine.tiles import Tiles
from methods import victims_across
from methods.kernels import shared


class Ranked(NamedTuple):
    """Some cells of a policy on one layer, and what its entries are worth.

    cells: who they are, the same on each layer. drops: entries that go of a head on average.
    layers: how many compete. sequences int64 [C * Hkv] of the tiles, on the host; positions and
    standing [C, Hkv, n] as in `victims`.
    """

    cells: Hashable
    drops: int
    layers: int
    tiles: Tiles
    sequences: Tensor
    positions: Tensor
    standing: Tensor


class Contest:
    """The layers of a pass that were ranked so far; nothing is left of them behind the last."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Ranked]] = {}

    def enter(self, ranked: Ranked) -> None:
        """Let a layer wait, or evict from all if it is the last."""
        key = ranked.cells, ranked.drops
        found = [*self._waiting.pop(key, ()), ranked]
        if len(found) < ranked.layers:
            self._waiting[key] = found
            return
        standing, positions = [each.standing for each in found], [each.positions for each in found]
        gone = victims_across(standing, positions, ranked.drops)
        for each, (order, numbers) in zip(found, gone, strict=True):
            some = (numbers.flatten() > 0).nonzero()[:, 0]
            if len(some):
                own = order.flatten(0, 1)[shared(some, order.device)]
                each.tiles.evict_some(each.sequences[some], own, numbers.flatten()[some])
