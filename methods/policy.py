"""What a layer shows to an eviction method, and how every method works: measure, score, keep.

Knows tensors only. It must not know models, prompts, caches or how a ratio was chosen.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .kernels import window_attention


@dataclass(frozen=True, eq=False)
class LayerView:
    """Keys, values and the last queries of one attention layer after the prompt was prefilled.

    keys [B, Hkv, L, d] and queries [B, H, Wq, d] are rotated already; values [B, Hkv, L, dv];
    queries holds the LAST Wq <= L positions. Query head h reads KV head h // (H / Hkv). `scaling`
    multiplies the logits. output_weight [C, H * dv] is the weight of the output projection.
    modality [B, L]: 0 text, 1 image. `mask`: bool, broadcastable to [B, 1, Wq, L], True where a
    query may see a key; None means causal, query i of the last Wq sitting at position L - Wq + i.

    ValueError when the shapes disagree or a mask hides every key from a query.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    scaling: float
    output_weight: Tensor | None = None
    layer: int = 0
    num_layers: int = 1
    modality: Tensor | None = None
    mask: Tensor | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse tensors that cannot belong to one layer."""
        for name in ("keys", "values", "queries"):
            if getattr(self, name).dim() != 4:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(
                    f"{name} has shape {shape}; give [batch, heads, tokens, head_dim]."
                )
        batch, kv_heads, length, dim = self.keys.shape
        if self.values.shape[:3] != (batch, kv_heads, length) or length == 0:
            raise ValueError(
                f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)} differ; give "
                "one value for each key, and at least one."
            )
        _, heads, rows, query_dim = self.queries.shape
        if self.queries.shape[0] != batch or query_dim != dim or heads % kv_heads or rows > length:
            raise ValueError(
                f"queries {tuple(self.queries.shape)} do not fit keys {tuple(self.keys.shape)}; "
                "give the last Wq <= L queries of H heads, H a multiple of the KV heads."
            )
        if not 0 <= self.layer < self.num_layers:
            raise ValueError(f"layer={self.layer} is outside 0..{self.num_layers - 1}.")
        self._check_optional(heads)

    def _check_optional(self, heads: int) -> None:
        weight, columns = self.output_weight, heads * self.values.shape[-1]
        if weight is not None and (weight.dim() != 2 or weight.shape[1] != columns):
            raise ValueError(
                f"output_weight has shape {tuple(weight.shape)}; give [hidden, {columns}], the "
                "weight of the output projection."
            )
        if self.modality is not None and self.modality.shape != (self.batch, self.length):
            raise ValueError(
                f"modality has shape {tuple(self.modality.shape)}; give one mark for each token, "
                f"[{self.batch}, {self.length}]."
            )
        if self.mask is None:
            return
        rows = self.queries.shape[2]
        wanted = (self.batch, 1, rows, self.length)
        fits = self.mask.dim() == 4 and all(
            m in (1, w) for m, w in zip(self.mask.shape, wanted, strict=True)
        )
        if self.mask.dtype != torch.bool or not fits:
            raise ValueError(
                f"mask is {self.mask.dtype} of shape {tuple(self.mask.shape)}; give a bool tensor "
                f"that broadcasts to {wanted}."
            )
        if not bool(self.mask.any(-1).all()):
            raise ValueError("mask hides every key from some query; leave at least one visible.")

    @property
    def batch(self) -> int:
        """Number of prompts B."""
        return self.keys.shape[0]

    @property
    def kv_heads(self) -> int:
        """Number of KV heads Hkv."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Number of prompt tokens L."""
        return self.keys.shape[2]

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """compute() at the first call with this key, the stored result afterwards.

        Several policies look at one view, and most of them need the same attention rows.
        """
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def last_rows(self, rows: int) -> int:
        """How many of the last `rows` queries exist: min(rows, L). ValueError if the view holds
        fewer."""
        rows = min(rows, self.length)
        if self.queries.shape[2] < rows:
            raise ValueError(
                f"the view holds the last {self.queries.shape[2]} queries and the method needs "
                f"{rows}; capture as many as policy.window says."
            )
        return rows

    def attention(self, rows: int) -> Tensor:
        """Softmax rows of the last min(rows, L) queries, float32 [B, H, rows, L]; computed once."""
        rows = self.last_rows(rows)
        widest = self._memo.get("attention")
        if widest is None or widest.shape[2] < rows:
            mask = None if self.mask is None else self.mask[:, :, -rows:]
            widest = window_attention(self.queries[:, :, -rows:], self.keys, self.scaling, mask)
            self._memo["attention"] = widest
        return widest[:, :, widest.shape[2] - rows :]


@dataclass(frozen=True, eq=False)
class Selection:
    """What one policy keeps of one layer at one budget.

    positions: int64 [B, Hkv, n], ascending. window: number of last tokens that were protected.
    adaptive: share of KV heads whose ReST-KV window differed from the fixed pool; None for methods
    without an adaptive window. fallback: the pattern used where the method's own does not fit, or
    None.
    """

    positions: Tensor
    window: int
    adaptive: float | None = None
    fallback: str | None = None


class Plan(NamedTuple):
    """What scores depend on besides the measurement; budgets with equal plans share them."""

    sinks: int  # first tokens always kept
    window: int  # last tokens always kept
    past: int = 0  # kept tokens outside the window, where the score depends on it
    fallback: str | None = None


class Scored(NamedTuple):
    """Scores of several plans, float32 [plans, B, Hkv, L], and the adaptive share of each plan."""

    scores: Tensor
    adaptive: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """An eviction method. Subclasses give `measure`, and `plan` or `rescore` where they differ.

    window: how many last queries the view must hold; None means all of them.
    """

    name: ClassVar[str] = ""
    window: int | None = field(default=0, init=False)

    @property
    def params(self) -> dict[str, object]:
        """Every parameter with its value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    @abstractmethod
    def measure(self, view: LayerView) -> Tensor:
        """What no budget changes: a score for each token, float32 [B, Hkv, L], larger = keep."""

    def plan(self, view: LayerView, count: int) -> Plan:
        """Protected ranges when `count` tokens are kept."""
        return Plan(0, protected_window(self.window or 0, count))

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Turn the measurement into scores for each plan, before protection."""
        return Scored(measured.expand(len(plans), *measured.shape), [None] * len(plans))

    @torch.no_grad()
    def score(self, view: LayerView, budget: int) -> Tensor:
        """float32 [B, Hkv, L], larger = keep; protected tokens are +inf."""
        count = kept_count(view.length, budget)
        return self._protected_scores(view, [self.plan(view, count)]).scores[0]

    def keep(self, view: LayerView, budget: int) -> Tensor:
        """Ascending positions, int64 [B, Hkv, min(budget, L)]; ties go to the lower position."""
        return self.select_many(view, [budget])[0].positions

    def keep_many(self, view: LayerView, budgets: Sequence[int]) -> list[Tensor]:
        """`keep` for each budget; what does not depend on the budget is computed once."""
        return [selection.positions for selection in self.select_many(view, budgets)]

    @torch.no_grad()
    def select_many(self, view: LayerView, budgets: Sequence[int]) -> list[Selection]:
        """A Selection for each budget. ValueError for a budget that is not a whole number >= 1."""
        counts = [kept_count(view.length, budget) for budget in budgets]
        if not counts:
            return []
        plans = [self.plan(view, count) for count in counts]
        distinct = list(dict.fromkeys(plans))
        scored = self._protected_scores(view, distinct)
        # A stable sort is what sends ties to the lower position.
        order = scored.scores.sort(dim=-1, descending=True, stable=True).indices
        selections = []
        for plan, count in zip(plans, counts, strict=True):
            row = distinct.index(plan)
            positions = order[row, :, :, :count].sort(dim=-1).values
            selections.append(
                Selection(positions, plan.window, scored.adaptive[row], plan.fallback)
            )
        return selections

    def _protected_scores(self, view: LayerView, plans: list[Plan]) -> Scored:
        scores, adaptive = self.rescore(view, self.measure(view), plans)
        ranges = tuple((plan.sinks, plan.window) for plan in plans)
        if any(sinks or window for sinks, window in ranges):
            protected = _protection_mask(view.length, ranges, scores.device)
            scores = scores.masked_fill(protected, torch.inf)
        return Scored(scores, adaptive)


def protected_window(window: int, count: int) -> int:
    """Protected last tokens when `count` are kept: the window where it fits, else half of them."""
    return window if count > window else count // 2


def kept_count(length: int, budget: int) -> int:
    """min(budget, L). ValueError for a budget that is not a whole number >= 1."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget={budget!r} is not a whole number of tokens; give 1 or more.")
    return min(budget, length)


def over_group(scores: Tensor, kv_heads: int, how: str) -> Tensor:
    """Reduce [B, H, L] over the query heads of a KV head to [B, Hkv, L] by mean, max or sum."""
    if scores.shape[1] == kv_heads:
        return scores
    grouped = scores.unflatten(1, (kv_heads, -1))  # [B, Hkv, g, L]
    if how == "max":
        return grouped.amax(2)
    return grouped.mean(2) if how == "mean" else grouped.sum(2)


@lru_cache(maxsize=64)
def _protection_mask(
    length: int, ranges: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    position = torch.arange(length)
    rows = [(position < sinks) | (position >= length - window) for sinks, window in ranges]
    return torch.stack(rows)[:, None, None].to(device)  # [plans, 1, 1, L]
