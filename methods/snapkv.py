"""SnapKV (arXiv 2404.14469): attention collected from the last queries, pooled over neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.linalg import vector_norm

from .checks import WINDOW, require, require_choice, require_count, require_flag
from .policy import Plan, Scored, over_group
from .smoothing import pool
from .view import LayerView
from .windowed import WindowPolicy


@dataclass(frozen=True, kw_only=True)
class SnapKV(WindowPolicy):
    """Score a token by the attention the last `window` queries pay to it, summed, then pooled.

    pool: avg (zeros beyond
    the ends) or max over `kernel` tokens (odd). group: how the query heads of a KV head are
    reduced, before pooling: mean, max or sum. value_norm: multiply by the length of the value, the
    "attn-v" ablation of ReST-KV's code. All `window` queries count even where a small budget
    protects fewer tokens.
    """

    name: ClassVar[str] = "snapkv"
    title: ClassVar[str] = "SnapKV"
    comparable_if: ClassVar[str] = "value_norm=false"
    pool: str = "avg"
    kernel: int = 5
    group: str = "mean"
    value_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_choice(self.name, "pool", self.pool, ("avg", "max"))
        require_count(self.name, "kernel", self.kernel, 1, WINDOW)
        require(self.kernel % 2 == 1, self.name, "kernel", self.kernel, "an odd number")
        require_choice(self.name, "group", self.group, ("mean", "max", "sum"))
        require_flag(self.name, "value_norm", self.value_norm)

    @property
    def comparable(self) -> bool:
        """Attention is, the length of values is not."""
        return not self.value_norm

    def measure(self, view: LayerView) -> Tensor:
        """Column sums of the window's attention rows, one for each KV head."""
        sums = over_group(self.columns(view)[0], view.kv_heads, self.group)
        return sums * vector_norm(view.values.float(), dim=-1) if self.value_norm else sums

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Pool what lies before each protected window."""
        windows = [plan.window for plan in plans]
        return Scored(pool(measured, windows, self.pool, self.kernel), [None] * len(plans))
