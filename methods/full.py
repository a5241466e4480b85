"""No eviction: the upper bound every method is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import kept_count
from .policy import Plan, Policy, Selection
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """Keep every token whatever the budget says."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "the full cache"

    def measure(self, view: LayerView) -> Tensor:
        """All tokens are equal."""
        return torch.zeros(view.keys.shape[:3], dtype=torch.float32, device=view.keys.device)

    def plan(self, view: LayerView, count: int) -> Plan:
        """Everything is protected."""
        return Plan(0, view.length)

    def select_many(self, view: LayerView, budgets: Sequence[int]) -> list[Selection]:
        """All L positions for each budget, which only has to be valid."""
        everything = torch.arange(view.length, device=view.keys.device)
        positions = everything.expand(view.batch, view.kv_heads, -1)
        counts = [kept_count(view.length, budget) for budget in budgets]
        return [Selection(positions, view.length) for _ in counts]
