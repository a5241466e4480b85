"""CriticalKV (arXiv 2502.03805): half by attention, half by attention times projected values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .budgets import LAYERS
from .checks import require, require_number
from .h2o import H2O
from .holding import Due
from .policy import Plan, Scored, over_group
from .scoring import ScoringPolicy
from .snapkv import SnapKV
from .tova import TOVA
from .view import LayerView

_BLOCK_ELEMENTS = 1 << 25  # float32 elements of the largest temporary on a GPU: 128 MiB
_CACHED = 1 << 18  # on a CPU 1 MiB, which stays near until it is summed


# As a base it would bring its fields a second time, in place of those of the first stage.
if TYPE_CHECKING:
    _Scoring = ScoringPolicy
else:
    _Scoring = ABC


@dataclass(frozen=True, kw_only=True)
class TwoStages(_Scoring):
    """Choose by the attention score a of the next class, then fill up by
    (a + epsilon) * || W_O v ||_1. Needs LayerView.output_weight.

    a is a mean of attention rows where the score is their sum.

    first_stage: fraction of the budget that a alone decides, protected tokens not counted (NVIDIA's
    kvpress counts them). epsilon: what lets tokens that nothing attends to differ by their values.
    The norms of a KV head's query heads, each of which has its own part of W_O, are reduced as the
    scores are (`group`).

    budget=adaptive: a shares the layer's budget out, and each head has two stages within its own
    part, as in kvpress. While a budget is held, entries stand as they do without the second stage.
    """

    comparable_if: ClassVar[str] = ""
    first_stage: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        allowed = "another rule, as its first stage counts on the budget of a layer by itself"
        require(self.budget != LAYERS, self.name, "budget", self.budget, allowed)
        require_number(self.name, "first_stage", self.first_stage, 0, 1)
        require_number(self.name, "epsilon", self.epsilon, 1e-12, 1)

    @abstractmethod
    def summed(self, view: LayerView) -> int:
        """How many attention rows a score adds up."""

    @property
    def comparable(self) -> bool:
        """Scores of two stages are not, and projected values have the scale of their layer."""
        return False

    def plan(self, view: LayerView, count: int) -> Plan:
        """The first stage takes its share of what is kept besides the protected tokens."""
        plan = self.bounded(super().plan(view, count), count)
        return plan._replace(past=max(0, count - self.fixed(view, plan)))

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Second-stage scores, and above them those of the first stage's tokens."""
        measured = measured / self.summed(view)
        base, adaptive, _ = super().rescore(view, measured, plans)  # [plans, B, Hkv, L]
        protected = self._protection(view, plans)
        if protected is not None:  # below every candidate, none of which is negative
            base = base.masked_fill(protected, -1.0)
        group = str(self.params.get("group", "mean"))
        second = (base + self.epsilon) * over_group(self._norms(view), view.kv_heads, group)
        ranked = base.sort(dim=-1, descending=True, stable=True)
        free = self._free(view, ranked.values, plans) if self.budget == "adaptive" else None
        kept = torch.tensor([plan.past for plan in plans])[:, None, None] if free is None else free
        # 1e-9: 0.58 of 50 is 29, and less in binary.
        taken = (self.first_stage * kept.double() + 1e-9).floor().to(base.device)
        ahead = torch.arange(view.length, device=base.device) < taken[..., None]
        first = torch.zeros_like(base, dtype=torch.bool)
        first = first.scatter(-1, ranked.indices, ahead.expand_as(base))
        # Twice the largest and 1, since adding 1 alone may round away.
        above = 2.0 * second.amax(-1, keepdim=True) + 1.0
        return Scored(torch.where(first, base + above, second), adaptive, free)

    def _free(self, view: LayerView, scores: Tensor, plans: Sequence[Plan]) -> Tensor:
        """What each head keeps besides protected tokens, int64 [plans, B, Hkv], by the first
        stage's scores in descending order.
        """
        candidates = [view.length - self.fixed(view, plan) for plan in plans]
        shares = [
            self._by_scores(own[..., :number], plan.past)
            for own, number, plan in zip(scores, candidates, plans, strict=True)
        ]
        return torch.stack(shares)

    def _norms(self, view: LayerView) -> Tensor:
        if view.output_weight is None:
            raise ValueError(
                f"{self.name}: needs the weight of the output projection and the view has none; "
                "pass LayerView.output_weight or choose its first stage alone, such as snapkv."
            )
        weight = view.output_weight
        norms: Tensor = view.once("projected_l1", lambda: _projected_l1(view, weight))
        return norms


@dataclass(frozen=True, kw_only=True)
class CriticalKV(TwoStages, SnapKV):
    """SnapKV first, as published: pooled, with the window protected."""

    name: ClassVar[str] = "criticalkv"
    title: ClassVar[str] = "CriticalKV"
    comparable_if: ClassVar[str] = ""
    value_norm: bool = field(default=False, init=False)

    def summed(self, view: LayerView) -> int:
        """The rows of the window."""
        return self.rows(view)


@dataclass(frozen=True, kw_only=True)
class CriticalH2O(TwoStages, H2O):
    """H2O first, with its recent tokens protected."""

    name: ClassVar[str] = "criticalkv_h2o"
    title: ClassVar[str] = "CriticalKV after H2O"

    def summed(self, view: LayerView) -> int:
        """All rows; of means, one."""
        return view.length if self.average == "sum" else 1


@dataclass(frozen=True, kw_only=True)
class CriticalTOVA(TwoStages, TOVA):
    """TOVA first; the second stage gives each head a set of its own."""

    name: ClassVar[str] = "criticalkv_tova"
    title: ClassVar[str] = "CriticalKV after TOVA"

    def summed(self, view: LayerView) -> int:
        """The last row."""
        return 1

    def rule(self, due: Due) -> None:
        """None: heads hold different sets."""
        return None


def _projected_l1(view: LayerView, weight: Tensor) -> Tensor:
    """|| W_O,h v_j ||_1 of every query head h and token j, float32 [B, H, L].

    All heads and a block of tokens at a time: the temporary has the hidden size C.
    """
    heads = view.queries.shape[1]
    parts = weight.unflatten(1, (heads, -1)).permute(1, 2, 0).float()  # [H, dv, C]
    most = _BLOCK_ELEMENTS if weight.is_cuda else _CACHED
    size = max(1, most // (heads * weight.shape[0]))
    norms = []
    for values in view.values.repeat_interleave(heads // view.kv_heads, 1):  # [H, L, dv]
        blocks = values.float().split(size, 1)
        norms.append(torch.cat([torch.bmm(block, parts).abs_().sum(-1) for block in blocks], 1))
    return torch.stack(norms)
