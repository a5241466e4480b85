"""TOVA (arXiv 2401.06104): what the last query attends to, averaged over all heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from .checks import require_flag
from .policy import LayerView, Plan, Policy, protected_window


@dataclass(frozen=True, kw_only=True)
class TOVA(Policy):
    """Keep one set for all heads of a layer: the top of the last query's head-mean attention.

    protect_last: always keep the newest token. The published method does not, and does evict it.
    """

    name: ClassVar[str] = "tova"
    window: int = field(default=1, init=False)
    protect_last: bool = False

    def __post_init__(self) -> None:
        """Refuse a flag that is not one."""
        require_flag(self.name, "protect_last", self.protect_last)

    def measure(self, view: LayerView) -> Tensor:
        """Mean over all query heads of the last attention row."""
        row = view.attention(1)[:, :, 0].mean(1, keepdim=True)  # [B, 1, L]
        return row.expand(-1, view.kv_heads, -1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """At most the newest token is protected."""
        return Plan(0, protected_window(1, count) if self.protect_last else 0)
