"""TOVA (arXiv 2401.06104): what the last query attends to, averaged over all heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import BUFFER, require_decode, require_flag
from .holding import Due, Rule, Step
from .kernels.lowest_entries import BY_ROW
from .policy import Plan
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class TOVA(ScoringPolicy):
    """Keep one set for all heads of a layer: the top of the last query's head-mean attention.

    protect_last: always keep the newest token. The published method does not, and does evict it.
    decode: hold evicts by the newest query's attention after every token, as published; buffer by
    the newest query's alone whenever `buffer` tokens are over the budget; grow selects once, after
    the prompt.
    """

    name: ClassVar[str] = "tova"
    title: ClassVar[str] = "TOVA"
    spans_layers: ClassVar[bool] = True
    window: int = field(default=1, init=False)
    protect_last: bool = False
    decode: str = "hold"
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        """Refuse a flag that is not one."""
        super().__post_init__()
        require_decode(self)
        require_flag(self.name, "protect_last", self.protect_last)

    def measure(self, view: LayerView) -> Tensor:
        """Mean over all query heads of the last attention row."""
        row, _ = view.columns(1, "end")  # [B, H, L]
        return row.mean(1, keepdim=True).expand(-1, view.kv_heads, -1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """At most the newest token is protected."""
        return Plan(0, protected_window(1, count) if self.protect_last else 0)

    @property
    def comparable(self) -> bool:
        """Scores are shares of one query's attention."""
        return True

    @property
    def observes(self) -> bool:
        """Every new query ranks the cache anew."""
        return self.period > 0

    def rule(self, due: Due) -> Rule | None:
        """The same, where all heads hold one set."""
        if self.budget in ("adaptive", "global"):
            return None
        nothing = torch.zeros_like(due.budgets)
        return Rule(nothing + BY_ROW, nothing, nothing + int(self.protect_last))

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """Mean over all query heads of the newest row; that token has no privilege unless asked."""
        assert step.attention is not None
        row = step.attention[:, :, -1].mean(1, keepdim=True)  # [C, 1, n]
        if not self.protect_last:
            return row
        return row.masked_fill(step.positions == step.seen - 1, torch.inf)
