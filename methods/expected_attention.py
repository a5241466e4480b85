"""Expected Attention (arXiv 2510.00636): what queries to come will attend to, on average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .budgets import protected_window
from .checks import WINDOW, require_count, require_flag, require_number
from .policy import Plan
from .scoring import ScoringPolicy
from .view import LayerView, Rotation


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(ScoringPolicy):
    """Score a token by the attention that a Gaussian query expects to pay to it, times its value.

    Queries of the prompt without their rotary positions have a mean m and a covariance C; turned by
    the average rotation of the next `future` positions these describe a query to come. Such a query
    gives key k the logit s m.k + s^2 k.C.k / 2 on average, s being the softmax scale; the softmax
    over keys is averaged over the query heads of a KV head, `epsilon` is added, and the length of
    the value multiplies it. covariance=false leaves out C, value_norm=false the value.

    The first `sinks` tokens are protected, and are left out of mean, covariance and softmax; a
    budget that they would use up keeps half of it as sinks. Needs LayerView.rotation and all
    queries, so it reads each prompt in one pass. Models with M-RoPE, without rotary positions, or
    with layers of another kind between those of full attention are refused. NVIDIA's kvpress, the
    authors' own code, scales by 1 / sqrt(head_dim) even where the model scales otherwise, and
    refuses prompts no longer than the sinks.
    """

    name: ClassVar[str] = "expected_attention"
    title: ClassVar[str] = "Expected Attention"
    unrotates: ClassVar[bool] = True
    window: None = field(default=None, init=False)
    future: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_count(self.name, "future", self.future, 1, WINDOW)
        require_count(self.name, "sinks", self.sinks, 0)
        require_flag(self.name, "covariance", self.covariance)
        require_flag(self.name, "value_norm", self.value_norm)
        require_number(self.name, "epsilon", self.epsilon, 0, 1)

    @property
    def needs_all_rows(self) -> bool:
        """It needs all queries, not what they attended to."""
        return False

    def measure(self, view: LayerView) -> Tensor:
        """Expected attention behind the sinks, 0 for them."""
        first = min(self.sinks, view.length - 1)
        keys = view.keys[:, :, first:].float()
        mean, spread = self._queries(view, first)  # [B, Hkv, g, d] and [B, Hkv, g, d, d]
        logits = view.scaling * mean @ keys.transpose(2, 3)  # [B, Hkv, g, n]
        if spread is not None:
            one = keys[:, :, None]
            logits += view.scaling**2 / 2 * ((one @ spread) * one).sum(-1)
        scores = logits.softmax(-1).mean(2)
        if self.value_norm:
            lengths = vector_norm(view.values[:, :, first:].float(), dim=-1)
            scores = (scores + self.epsilon) * lengths
        return torch.nn.functional.pad(scores, (first, 0))

    def plan(self, view: LayerView, count: int) -> Plan:
        """Sinks are protected."""
        return Plan(protected_window(self.sinks, count), 0)

    def _queries(self, view: LayerView, first: int) -> tuple[Tensor, Tensor | None]:
        """Mean and covariance of queries to come, of each query head."""
        rotation = _rotation(view)
        view.last_rows(view.length)
        plain = rotation.undo(view.queries)[:, :, first:].unflatten(1, (view.kv_heads, -1))
        mean = plain.mean(3)
        ahead = rotation.ahead(mean, self.future)
        if not self.covariance:
            return ahead, None
        centred = plain - mean[:, :, :, None]
        spread = centred.transpose(3, 4) @ centred / centred.shape[3]
        half = rotation.ahead(spread, self.future)  # turns rows, then columns
        return ahead, rotation.ahead(half.transpose(3, 4), self.future)


def _rotation(view: LayerView) -> Rotation:
    if view.rotation is None:
        raise ValueError(
            "expected_attention: needs queries without their rotary positions and the view does "
            "not say how to undo these; pass LayerView.rotation or choose another method."
        )
    return view.rotation
