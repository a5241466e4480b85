"""StreamingLLM (arXiv 2309.17453): the first tokens and the most recent ones, no scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require_count
from .policy import LayerView, Plan, Policy, protected_window


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Policy):
    """Keep `sinks` first tokens and fill the budget with the last ones.

    A budget that the sinks would use up keeps half of it as sinks, so that recent tokens always
    remain.
    """

    name: ClassVar[str] = "streaming_llm"
    sinks: int = 4

    def __post_init__(self) -> None:
        """Refuse a negative number of sinks."""
        require_count(self.name, "sinks", self.sinks, 0)

    def measure(self, view: LayerView) -> Tensor:
        """The position: later is better."""
        position = torch.arange(view.length, dtype=torch.float32, device=view.keys.device)
        return position.expand(view.batch, view.kv_heads, -1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """Sinks and recent tokens are the whole budget."""
        return sinks_and_recent(self.sinks, count)


def sinks_and_recent(sinks: int, count: int, fallback: str | None = None) -> Plan:
    """The pattern as a plan: sinks where they leave room in `count`, else half of it."""
    kept = protected_window(sinks, count)
    return Plan(kept, count - kept, fallback=fallback)
