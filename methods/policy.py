"""How every method works: measure, score, keep, and while decoding hold or grow.

Knows layers and budgets. It must not know models, prompts, caches or how a ratio was chosen.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .budgets import kept_count, protected_window
from .checks import BUFFER
from .holding import Due, Held, Rule, Step, victims
from .kernels import send
from .merging import NONE
from .selection import Chosen as Chosen
from .selection import Plan as Plan
from .selection import Rated as Rated
from .selection import Scored as Scored
from .selection import Selection as Selection
from .view import LayerView

_SHARED = {
    *("window_anchor", "budget", "pyramid_beta", "adaptive_floor", "protect"),
    *("boundary_share", "merge", "decode", "buffer", "positions"),
}


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """An eviction method. Subclasses give `measure`, and `plan` or `rescore` where they differ.

    window: how many last queries the view must hold; None means all of them.
    decode: grow = every new token stays; hold = the cache is evicted back to its budget after each;
    buffer = whenever it is `buffer` tokens over its budget, as R-KV (arXiv 2505.24133) and TRIM-KV
    (arXiv 2512.03324) evict, so that after a step it is at most buffer - 1 over it.
    positions: original = keys keep the rotary positions of the prompt; cache = they are re-indexed
    by their place in the cache. merge: none, or how what is evicted from the prompt changes what
    stays, see `merging.merged`.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # as it is written in a sentence; empty: as its name
    learned: ClassVar[bool] = False  # whether it was trained
    made_for_images: ClassVar[bool] = False  # whether it tells image tokens from text
    spans_layers: ClassVar[bool] = False  # whether a Step may hold cells of several layers
    unrotates: ClassVar[bool] = False  # whether it needs LayerView.rotation
    window: int | None = field(default=0, init=False)
    decode: str = field(default="grow", init=False)
    buffer: int = field(default=BUFFER, init=False)
    positions: str = field(default="original", init=False)
    merge: str = field(default=NONE, init=False)

    @property
    def params(self) -> dict[str, object]:
        """Every parameter with its value, those of the method before those that many share."""
        names = [f.name for f in dataclasses.fields(self) if f.init]
        return {name: getattr(self, name) for name in sorted(names, key=_SHARED.__contains__)}

    @property
    def period(self) -> int:
        """How many tokens over the budget make it evict while decoding; 0: it never does."""
        return {"grow": 0, "hold": 1}.get(self.decode, self.buffer)

    @property
    def observes(self) -> bool:
        """Whether decoding must show it the attention of new tokens."""
        return False

    @property
    def follows(self) -> bool:
        """Whether decoding must show it every step, and not only those after which entries go."""
        return self.observes

    @property
    def recalls(self) -> int:
        """How many last queries decoding must show it with the keys of entries where some go."""
        return 0

    @property
    def spares(self) -> bool:
        """Whether some of the prompt outlives all else while decoding, of which no rule tells."""
        return False

    @property
    def competes(self) -> bool:
        """Whether all layers and heads compete for a held budget, see `victims_across`."""
        return False

    @property
    def waits(self) -> bool:
        """Whether it selects from all layers at once, by `select_layers`, when each was rated."""
        return False

    @property
    def sees_hidden(self) -> bool:
        """Whether views, and steps while a budget is held, must hold what enters attention."""
        return False

    @property
    def recites(self) -> int | None:
        """How many tokens of the context the model shall repeat at a time for it; None: nothing."""
        return None

    @property
    def needs_all_rows(self) -> bool:
        """Whether its score is made of the attention of all queries, not of some last ones."""
        return self.window is None

    @property
    def adds(self) -> bool:
        """Whether a method that needs all queries adds their causal attention up, so that
        `LayerView.earlier` may stand for the first of them.
        """
        return False

    def ready(self) -> Policy:
        """The policy tied to the files that it reads besides views.

        ValueError, one sentence, where they are not there.
        """
        return self

    @abstractmethod
    def measure(self, view: LayerView) -> Tensor:
        """What no budget changes: a score for each token, float32 [B, Hkv, L], larger = keep."""

    def asks(self, view: LayerView) -> Tensor | None:
        """What `measure` must know on the host, float [n], or None.

        To read it a GPU is waited for. Whoever shows many layers may read that of all at once, and
        show each with its `LayerView.answers` once more; no queries are needed then.
        """
        return None

    def queries(self, suffix: int, behind: int = 0) -> int | None:
        """How many last queries the view must hold if `suffix` tokens follow the question and
        `behind` tokens, those among them, the context.
        """
        return self.window

    def plan(self, view: LayerView, count: int) -> Plan:
        """Protected ranges when `count` tokens are kept."""
        return Plan(0, protected_window(self.window or 0, count))

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Turn the measurement into scores for each plan, before protection."""
        return Scored(measured.expand(len(plans), *measured.shape), [None] * len(plans))

    def remember(self, view: LayerView, measured: Tensor) -> Tensor | None:
        """float32 [B, Hkv, L] that the first `carry` builds on, or None."""
        return None

    def carry(self, step: Step) -> Tensor | None:
        """What to remember of each entry after a step, float32 [C, Hkv, n], or None."""
        return None

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """float32, broadcastable to [C, Hkv, n]: entries of lowest standing are evicted first.

        Numbers, or +inf for what stays, wherever `step.attention` and `carried` are numbers: those
        are watched, by the logits and by Selection.peak, and this is not.
        """
        raise AssertionError(f"{self.name} does not hold a budget")

    def ranked(self, step: Step, carried: Tensor | None) -> Tensor:
        """`standing` with what else protects entries, float32 [C, Hkv, n]."""
        return self.standing(step, carried).expand_as(step.positions)

    def rule(self, due: Due) -> Rule | None:
        """What `standing` and `carry` give as a rule; None where it is none."""
        return None

    def drop(self, step: Step, carried: Tensor | None, count: int) -> Tensor:
        """Which `count` entries of each head go, int64 [C, Hkv, count]; of equals, the newest."""
        return victims(self.ranked(step, carried), step.positions, count)

    def evictions(self, held: Held, grown: int, seen: int, num_layers: int) -> int:
        """How many entries every head drops after a step.

        grown: tokens appended since the prompt was evicted, less those dropped; seen: tokens so
        far.
        """
        over = grown - (held.limit - held.kept)
        return over if over >= max(1, self.period) else 0

    @torch.no_grad()
    def score(self, view: LayerView, budget: int) -> Tensor:
        """float32 [B, Hkv, L], larger = keep; protected tokens are +inf."""
        _, plan = self._share(view, kept_count(view.length, budget))
        return self._protected_scores(view, [plan])[0].scores[0]

    def keep(self, view: LayerView, budget: int) -> Tensor:
        """Ascending positions, int64 [B, Hkv, min(budget, L)]; ties go to the lower position.

        budget=pyramid keeps another number on each layer; with budget=adaptive heads differ, and -1
        fills the ends.
        """
        return self.select_many(view, [budget])[0].positions

    def keep_many(self, view: LayerView, budgets: Sequence[int]) -> list[Tensor]:
        """`keep` for each budget; what does not depend on the budget is computed once."""
        return [selection.positions for selection in self.select_many(view, budgets)]

    @torch.no_grad()
    def select_many(self, view: LayerView, budgets: Sequence[int]) -> list[Selection]:
        """A Selection for each budget. ValueError for a budget that is not a whole number >= 1."""
        if not budgets:
            return []
        rated = self.rate(view, budgets)
        # A stable sort is what sends ties to the lower position.
        ranked = rated.scored.scores.sort(dim=-1, descending=True, stable=True)
        selections = []
        for index, (count, plan) in enumerate(rated.shares):
            row = rated.row(index)
            free = None if rated.scored.free is None else rated.scored.free[row]
            own = ranked.values[row], ranked.indices[row], free
            chosen = self._choose(view, plan, count, *own)
            selections.append(rated.selection(index, chosen))
        return selections

    @torch.no_grad()
    def rate(self, view: LayerView, budgets: Sequence[int]) -> Rated:
        """What a selection for each budget follows from. ValueError as in `select_many`."""
        shares = [self._share(view, kept_count(view.length, budget)) for budget in budgets]
        plans = list(dict.fromkeys(plan for _, plan in shares))
        rated = Rated(view.length, shares, plans, *self._protected_scores(view, plans))
        if not self.recalls:
            return rated
        last = view.queries[:, :, -self.recalls :].float() * view.scaling
        return rated._replace(queries=last)

    def select_layers(self, rated: Sequence[Rated]) -> list[list[Selection]]:
        """A Selection for each layer and budget, where these were rated for the same budgets."""
        raise AssertionError(f"{self.name} selects from each layer by itself")

    def _choose(
        self,
        view: LayerView,
        plan: Plan,
        count: int,
        scores: Tensor,
        order: Tensor,
        free: Tensor | None,
    ) -> Chosen:
        """The first `count` of each head's ranking; scores and order [B, Hkv, L], free as in
        Scored.
        """
        return Chosen(order[..., :count].sort(dim=-1).values, None, plan.fallback)

    def _share(self, view: LayerView, count: int) -> tuple[int, Plan]:
        """Tokens kept on this layer, and the plan, when `count` are kept on average."""
        return count, self.plan(view, count)

    def _protected_scores(
        self, view: LayerView, plans: list[Plan]
    ) -> tuple[Scored, Sequence[Tensor], Tensor | None]:
        """Scores, the largest by absolute value that is not protected, and what is remembered."""
        measured = self.measure(view)
        scored = self.rescore(view, measured, plans)
        scores = scored.scores
        protected = self._protection(view, plans)
        free = scores if protected is None else scores.masked_fill(protected, 0.0)
        peaks = vector_norm(free, torch.inf, (1, 2, 3)).unbind()
        if protected is not None:
            scores = scores.masked_fill(protected, torch.inf)
        remembered = self.remember(view, measured) if self.period else None
        return scored._replace(scores=scores), peaks, remembered

    def _protection(self, view: LayerView, plans: Sequence[Plan]) -> Tensor | None:
        """True for protected tokens, broadcastable to [plans, B, Hkv, L]; None: there are none."""
        ranges = tuple((plan.sinks, plan.window) for plan in plans)
        if not any(sinks or window for sinks, window in ranges):
            return None
        return _range_mask(view.length, ranges, view.keys.device)


def over_group(scores: Tensor, kv_heads: int, how: str) -> Tensor:
    """Reduce [B, H, L] over the query heads of a KV head to [B, Hkv, L] by mean, max or sum."""
    if scores.shape[1] == kv_heads:
        return scores
    grouped = scores.unflatten(1, (kv_heads, -1))  # [B, Hkv, g, L]
    if how == "max":
        return grouped.amax(2)
    return grouped.mean(2) if how == "mean" else grouped.sum(2)


@lru_cache(maxsize=64)
def _range_mask(length: int, ranges: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    position = torch.arange(length)
    rows = [(position < sinks) | (position >= length - window) for sinks, window in ranges]
    return send(torch.stack(rows)[:, None, None], device)  # [plans, 1, 1, L]
