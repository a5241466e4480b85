"""KVzip (arXiv 2505.23416): what the model needs to repeat the context word by word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from .budgets import protected_window
from .checks import WINDOW, require_count
from .policy import Plan, over_group
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class KVzip(ScoringPolicy):
    """Score a token of the context by the most attention that any query pays to it while the model
    is made to repeat the context, over all query heads of its KV head.

    The context is repeated in parts of `chunk` tokens, each behind words that ask for it; a
    softmax is over the part's own keys, those of the template before the context, and the repeated
    tokens so far. No question is looked at: the scores are the same whatever is asked. What
    precedes the context stays, and what follows it, as published; where the budget is too small
    for the latter, half of it is last tokens, and of the rest as much as fits or half is first
    ones. Their share of the budget is not counted in the released code, whose ratio is one of the
    context alone. Needs LayerView.recited.

    The authors' default is one threshold for all heads of all layers: budget=global, which here
    also keeps the best entry of each head, and an exact count, where theirs keeps one entry less
    and drops ties. uniform is their pair-uniform. NVIDIA's kvpress with layerwise=true shares by
    plain pooling over the heads of a layer, where budget=adaptive weighs and spreads a part
    evenly. Scores of heads stored for a model, the variant without a pass, are not here, nor is
    the scaling by norms of kvpress. The released code divides logits by sqrt(head_dim) on every
    model and takes its softmax in half precision; kvpress protects four tokens of the template and
    gives those behind them no score, so they go first.
    """

    name: ClassVar[str] = "kvzip"
    title: ClassVar[str] = "KVzip"
    chunk: int = 2000

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_count(self.name, "chunk", self.chunk, 1, WINDOW)

    @property
    def comparable(self) -> bool:
        """Attention is."""
        return True

    @property
    def recites(self) -> int:
        """Tokens of a part."""
        return self.chunk

    def measure(self, view: LayerView) -> Tensor:
        """The most attention; 0 outside the context."""
        first, end = _span(view)
        assert view.recited is not None  # as there is a span
        most = over_group(view.recited.attention, view.kv_heads, "max")
        return pad(most, (first, view.length - end))

    def plan(self, view: LayerView, count: int) -> Plan:
        """What surrounds the context is protected."""
        first, end = _span(view)
        window = protected_window(view.length - end, count)
        return Plan(protected_window(first, count - window), window)


def _span(view: LayerView) -> tuple[int, int]:
    """First token that was repeated, and the one behind the last."""
    if view.recited is None:
        raise ValueError(
            "kvzip: needs the attention of a model that repeats the context and the view has none; "
            "pass LayerView.recited or choose another method."
        )
    return view.recited.first, view.recited.first + view.recited.attention.shape[-1]
