"""The compacted caches of a prompt, held where several questions follow its eviction.

Must not know how a prompt is prefilled or how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.engine import branch as branching
from harness.engine.branch import Batch, Sequel
from harness.engine.cells import Cell
from harness.engine.layout import Layout
from harness.engine.prefill import Prefill
from harness.models.memory import free_memory

HELD = 2  # prompts of which something is held: one, and its control with blank images
BATCHES = HELD + 1  # of the one there are two where some cells fetch: these decode by themselves
SHARE = 1 / 8  # of the free memory, what each of them may take


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may be held for later prompts."""
    return size <= SHARE * free_memory(device)


@dataclass(frozen=True)
class _Known:
    """A batch, and the prefill and cells that it is of."""

    batch: Batch
    filled: Prefill
    cells: tuple[Cell, ...]
    trace: bool


class Batches:
    """Compacts prompts, once where the same is asked again."""

    def __init__(self) -> None:
        self._held: list[_Known] = []  # the latest last

    def forget(self) -> None:
        """Hold nothing of earlier prompts any more."""
        self._held.clear()

    def build(
        self,
        filled: Prefill,
        layout: Layout,
        cells: Sequence[Cell],
        sequel: Sequel,
        trace: bool = False,
    ) -> Batch:
        """As of `branch.build`; the first question of a prompt leaves nothing behind."""
        if not filled.again:
            self.forget()
            return branching.build(filled, layout, cells, sequel, trace)
        for i, known in enumerate(self._held):
            same = known.filled.cache is filled.cache and known.trace == trace
            if same and known.cells == tuple(cells):
                self._held.append(self._held.pop(i))
                return branching.again(known.batch, filled, layout, cells, sequel)
        made = branching.build(filled, layout, cells, sequel, trace)
        if not fits(made.bytes, filled.logits.device):
            return made
        self._held = [*self._held[1 - BATCHES :], _Known(made, filled, tuple(cells), trace)]
        return branching.again(made, filled, layout, cells, sequel)
