"""H2O (arXiv 2306.14048): heavy hitters, the keys all queries attended to most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import BUFFER, require, require_choice, require_count, require_decode, require_flag
from .holding import Due, Rule, Step
from .kernels.lowest_entries import BY_MEAN, BY_SUM
from .policy import Plan, over_group
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class H2O(ScoringPolicy):
    """Keep the recent tokens and, of the rest, those with the largest attention column sums.

    recent: protected last tokens as a count, or None for half the budget. average: sum, or
    visible_mean, which divides by the number of queries that can see the key and so removes the
    bias for early tokens. group: mean, max or sum over the query heads of a KV head, after the sum.
    causal=True is H2O as published. False reproduces the baseline in the released code of ReST-KV,
    where all queries but the last `recent` also attend to the future; it needs `recent` as a count,
    and decode=grow to be that baseline.

    decode: hold adds the attention of every new token to the sums and evicts the lowest outside the
    recent half (or the last `recent`), as published; buffer adds as well, and evicts `buffer`
    entries at a time; grow selects once, after the prompt.
    """

    name: ClassVar[str] = "h2o"
    title: ClassVar[str] = "H2O"
    spans_layers: ClassVar[bool] = True
    window: None = field(default=None, init=False)
    recent: int | None = None
    causal: bool = True
    average: str = "sum"
    group: str = "mean"
    decode: str = "hold"
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_decode(self)
        if self.recent is not None:
            require_count(self.name, "recent", self.recent, 0)
        require_flag(self.name, "causal", self.causal)
        require_choice(self.name, "average", self.average, ("sum", "visible_mean"))
        require_choice(self.name, "group", self.group, ("mean", "max", "sum"))
        if not self.causal:
            allowed = "a count of recent tokens with causal=False"
            require(self.recent is not None, self.name, "recent", self.recent, allowed)

    def measure(self, view: LayerView) -> Tensor:
        """Column sums over all queries, one for each KV head."""
        if not self.causal and view.mask is not None:
            raise ValueError("h2o: causal=False does not combine with a mask; use causal=True.")
        blind = None if self.causal else min(self.recent or 0, view.length)
        sums = view.collected(blind)
        if self.average == "visible_mean":
            sums = sums / self._observers(view)
        return over_group(sums, view.kv_heads, self.group)

    def plan(self, view: LayerView, count: int) -> Plan:
        """The recent tokens are protected: half the budget, or `recent` where it fits."""
        if self.recent is None:
            return Plan(0, count // 2)
        return Plan(0, protected_window(self.recent, count))

    @property
    def comparable(self) -> bool:
        """Every query shares out as much attention on each layer."""
        return True

    @property
    def adds(self) -> bool:
        """Sums of causal attention, unless all but the last queries see the future."""
        return self.causal

    @property
    def observes(self) -> bool:
        """The sums go on while decoding."""
        return self.period > 0

    def remember(self, view: LayerView, measured: Tensor) -> Tensor:
        """The sums; of means, what a mean over the queries since the token itself comes from."""
        if self.average == "sum":
            return measured
        return measured * (view.length - torch.arange(view.length, device=measured.device))

    def carry(self, step: Step) -> Tensor:
        """Add the new rows, reduced over the query heads of a KV head."""
        assert step.attention is not None
        assert step.carried is not None
        rows = step.attention.sum(2)  # [C, H, n]
        return step.carried + over_group(rows, step.positions.shape[1], self.group)

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """The sums outside the recent tokens."""
        assert carried is not None
        if self.average == "visible_mean":
            carried = carried / (step.seen - step.positions)
        if self.recent is None:
            recent = step.budgets // 2
        else:
            fits = step.budgets > self.recent
            recent = torch.where(fits, self.recent, step.budgets // 2)
        protected = step.positions >= step.seen - recent[..., None]
        return torch.where(protected, torch.inf, carried)

    def rule(self, due: Due) -> Rule | None:
        """The same for sums and means of sums."""
        if self.average != "sum" or self.group == "max":
            return None
        budgets = due.budgets
        recent = budgets // 2
        if self.recent is not None:
            recent = torch.where(budgets > self.recent, self.recent, recent)
        by = BY_SUM if self.group == "sum" else BY_MEAN
        return Rule(torch.full_like(budgets, by), torch.zeros_like(budgets), recent)

    def _observers(self, view: LayerView) -> Tensor:
        """Number of queries that see each key, broadcastable to [B, H, L]."""
        length = view.length
        if view.mask is not None:
            return view.mask.expand(-1, -1, length, -1).sum(2).clamp_min(1)
        position = torch.arange(length, device=view.keys.device)
        if self.causal:
            return length - position
        own = max(0, length - (self.recent or 0))
        return torch.where(position < own, length, own + length - position)
