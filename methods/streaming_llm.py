"""StreamingLLM (arXiv 2309.17453): the first tokens and the most recent ones, no scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import BUFFER, require_count, require_decode, require_positions
from .holding import Due, Rule, Step
from .kernels.lowest_entries import BY_AGE
from .policy import Plan, Policy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Policy):
    """Keep `sinks` first tokens and fill the budget with the last ones.

    A budget that the sinks would use up keeps half of it as sinks, so that recent tokens always
    remain.

    decode: hold slides the recent tokens along while generating, as published; buffer does so by
    `buffer` tokens at a time; grow selects once, after the prompt. positions: original, or cache
    for rotary positions by the place in the cache, as published, which only models with 1-D rotary
    positions have.
    """

    name: ClassVar[str] = "streaming_llm"
    title: ClassVar[str] = "StreamingLLM"
    spans_layers: ClassVar[bool] = True
    sinks: int = 4
    decode: str = "hold"
    buffer: int = BUFFER
    positions: str = "original"

    def __post_init__(self) -> None:
        """Refuse a negative number of sinks."""
        require_decode(self)
        require_positions(self)
        require_count(self.name, "sinks", self.sinks, 0)

    def measure(self, view: LayerView) -> Tensor:
        """The position: later is better."""
        position = torch.arange(view.length, dtype=torch.float32, device=view.keys.device)
        return position.expand(view.batch, view.kv_heads, -1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """Sinks and recent tokens are the whole budget."""
        return sinks_and_recent(self.sinks, count)

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """The position, sinks above all."""
        return sliding(self.sinks, step)

    def rule(self, due: Due) -> Rule:
        """The same."""
        return sliding_rule(self.sinks, due.budgets)


def sliding_rule(sinks: int, budgets: Tensor) -> Rule:
    """`sliding` as a rule."""
    kept = torch.where(budgets > sinks, sinks, budgets // 2)
    return Rule(torch.full_like(kept, BY_AGE), kept, torch.zeros_like(kept))


def sinks_and_recent(sinks: int, count: int, fallback: str | None = None) -> Plan:
    """The pattern as a plan: sinks where they leave room in `count`, else half of it."""
    kept = protected_window(sinks, count)
    return Plan(kept, count - kept, fallback=fallback)


def sliding(sinks: int, step: Step) -> Tensor:
    """Standing by position with the sinks protected, by the same rule as in the prompt."""
    fits = step.budgets > sinks
    kept = torch.where(fits, sinks, step.budgets // 2)[..., None]
    return torch.where(step.positions < kept, torch.inf, step.positions.float())
