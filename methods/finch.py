"""FINCH (arXiv 2408.00167): what the question attends to, each of its tokens counted alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import WINDOW, require, require_count, require_flag, require_positions
from .merging import NONE
from .policy import Plan, over_group
from .view import LayerView
from .windowed import WatchingPolicy


@dataclass(frozen=True, kw_only=True)
class Finch(WatchingPolicy):
    """Score a token by the mean attention that the question pays to it, and keep the question.

    window: None = all tokens that follow the context, which are protected as well where the budget
    exceeds them; a number = as many last queries, as for other windows. window_anchor=question
    leaves the suffix of the chat template out of what is watched, not of what is protected.
    normalize: multiply a query's attention by the number of keys before it, for the more a query
    sees, the less each key gets; the query's own key is not counted, as in NVIDIA's kvpress, the
    reference code. positions: original, or cache for rotary positions by the place in the cache, as
    published, which only models with 1-D rotary positions have; kept entries are not merged then.

    The context is what Prompt.context or a delimiter of kvpress ends. Where the question is read
    after the eviction there is none to watch, and window=None is refused. The paper reads a long
    context chunk by chunk, each beside the question and what is left of those before; kvpress can
    choose from each chunk of scores by itself. Here all of the prompt is ranked at once, as kvpress
    does by default.
    """

    name: ClassVar[str] = "finch"
    title: ClassVar[str] = "FINCH"
    window: int | None = None
    window_anchor: str = "question"
    normalize: bool = True
    positions: str = "original"

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        if self.window is not None:
            require_count(self.name, "window", self.window, 1, WINDOW)
        require_flag(self.name, "normalize", self.normalize)
        require_positions(self)
        allowed = "none with positions=cache, as merged keys have no place of their own"
        plain = self.merge == NONE or self.positions == "original"
        require(plain, self.name, "merge", self.merge, allowed)

    @property
    def comparable(self) -> bool:
        """Attention is, and queries count alike on all layers."""
        return True

    @property
    def needs_all_rows(self) -> bool:
        """Only those of the question."""
        return False

    def queries(self, suffix: int, behind: int = 0) -> int:
        """The window, or all that is behind the context."""
        if self.window is None:
            return behind
        return self.window + (suffix if self.window_anchor == "question" else 0)

    def width(self, view: LayerView) -> int:
        """Tokens of the question, or of the window."""
        if self.window is not None:
            return self.window
        width = _behind(view) - (view.suffix if self.window_anchor == "question" else 0)
        if width < 1:
            raise ValueError(
                "finch: watches the question, and none is there when the cache is evicted; use "
                "protocol=replay, or give window, how many last tokens to watch in its place."
            )
        return width

    def measure(self, view: LayerView) -> Tensor:
        """Mean over the queries of the window and the query heads of a KV head."""
        rows, behind = view.watched(self.width(view), self.window_anchor)
        weights = None
        if self.normalize:
            last = view.length - behind
            weights = torch.arange(last - rows, last, device=view.keys.device).float()
        return over_group(self.columns(view, weights)[0] / rows, view.kv_heads, "mean")

    def plan(self, view: LayerView, count: int) -> Plan:
        """All that is behind the context is protected, or the window."""
        wide = _behind(view) if self.window is None else self.window
        return Plan(0, protected_window(wide, count))


def _behind(view: LayerView) -> int:
    if view.context is None:
        raise ValueError(
            "finch: watches what follows the context, and this prompt marks no end of one; give "
            "window, how many last tokens to watch."
        )
    return view.length - view.context
