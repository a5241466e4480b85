"""What methods share whose scores can be compared: budgets by layer and head, and spared tokens.

Knows policies and budget rules; must not know any one method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import GLOBAL, LAYERS, RULES, adaptive, boundary, pooled, preferred, pyramid
from .checks import require, require_choice, require_count, require_number
from .holding import Held, Step
from .kernels import shared
from .merging import MERGES, NONE
from .policy import Chosen, Plan, Policy, Rated, Selection
from .view import LayerView

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class ScoringPolicy(Policy):
    """A policy whose scores can be compared: budgets may differ by layer and head.

    budget: uniform = every head of every layer keeps as many; pyramid = fewer from layer to layer
    (budgets.pyramid, with pyramid_beta); adaptive = heads of a layer share its budget by their
    pooled scores (budgets.adaptive, with adaptive_floor), none of which may be negative; global =
    the best tokens of all heads of all layers stay, and of each head those protected and the best
    one (budgets.pooled), where scores of different layers are in one unit: shares of attention, or
    of the layer's output; layers = layers share by what each asks for (`preference`,
    budgets.preferred), and the heads of a layer keep as many. The total is the same. While a budget
    is held each head goes on with its number, unless the policy `competes`.
    protect: text = of the prompt, only image tokens are evicted; where there is more text than
    budget, all of it is kept and Selection.fallback is "all_text". While a budget is held, new
    tokens compete with what is left of the images. boundary = the first and the last tokens of the
    prompt stay (arXiv 2605.18053), boundary_share of the layer's budget at each end, at least one;
    a window of last tokens of the method's own holds the last ones, and gives way to the first
    where the budget is too small for both. Both ends stay while a budget is held.
    merge: average, pivot or weighted = what is evicted from the prompt is merged into the kept
    entries with the most similar keys (merging.merged); what a held budget drops later is not.
    """

    comparable_if: ClassVar[str] = ""  # what lets scores of different layers be compared

    budget: str = "uniform"
    pyramid_beta: int = 20
    adaptive_floor: float = 0.2
    protect: str = "none"
    boundary_share: float = 0.1
    merge: str = NONE

    def __post_init__(self) -> None:
        """Refuse values that no method has a meaning for."""
        require_choice(self.name, "budget", self.budget, (*RULES, GLOBAL, LAYERS))
        if self.budget == LAYERS:
            allowed = "another rule, as layers ask by what an observation window attends to"
            require(self.prefers, self.name, "budget", self.budget, allowed)
        if self.budget == GLOBAL and not self.comparable:
            allowed = (
                "a rule for each layer by itself, as scores of different layers are not in one unit"
            )
            if self.comparable_if:
                allowed += f", or {self.comparable_if}"
            require(False, self.name, "budget", self.budget, allowed)
        require_count(self.name, "pyramid_beta", self.pyramid_beta, 1, 1_000_000)
        require_number(self.name, "adaptive_floor", self.adaptive_floor, 0, 1)
        require_choice(self.name, "protect", self.protect, ("none", "text", "boundary"))
        require_number(self.name, "boundary_share", self.boundary_share, 1e-6, 0.5)
        require_choice(self.name, "merge", self.merge, (NONE, *MERGES))

    @property
    def comparable(self) -> bool:
        """Whether scores of different layers are in one unit, as shares of attention are."""
        return False

    @property
    def waits(self) -> bool:
        """With budget=global or layers."""
        return self.budget in (GLOBAL, LAYERS)

    @property
    def prefers(self) -> bool:
        """Whether it has a `preference`."""
        return False

    def preference(self, view: LayerView) -> Tensor:
        """How much a layer asks for beside others, float64 [B], not negative."""
        raise AssertionError(f"{self.name} asks for nothing")

    @property
    def spares(self) -> bool:
        """Whether text or the ends of the prompt outlive all else."""
        return self.protect != "none"

    def bounded(self, plan: Plan, count: int) -> Plan:
        """The plan with both ends of the prompt protected if they are to be; of its own result,
        the same.
        """
        if self.protect != "boundary":
            return plan
        ends = boundary(count, self.boundary_share)
        sinks = max(ends, min(plan.sinks, count - ends))
        window = max(ends, min(plan.window, count - sinks))
        return plan._replace(sinks=sinks, window=window)

    def fixed(self, view: LayerView, plan: Plan) -> int:
        """How many tokens are protected."""
        if self.protect != "text":
            return plan.sinks + plan.window
        mask = self._protection(view, [plan])
        assert mask is not None  # there is a text mask
        return int(mask[0, 0, 0].sum())

    def ranked(self, step: Step, carried: Tensor | None) -> Tensor:
        """As for every policy, with what is spared of the prompt above all else."""
        standing = super().ranked(step, carried)
        spared = self._spared(step)
        if spared is None:
            return standing
        # What else is protected goes by age once nothing unprotected is left.
        aged = _LARGEST * ((step.positions + 1) / (step.seen + 1))
        return torch.where(standing.isinf(), aged, standing).masked_fill(spared, torch.inf)

    def _spared(self, step: Step) -> Tensor | None:
        """Entries of the prompt that stay whatever comes, bool [C, Hkv, n], or None."""
        if self.protect != "boundary":
            return step.text
        told = [[held.prompt, self._ends(held)] for held in step.held]
        cells = shared(torch.tensor(told), step.positions.device)[..., None, None]
        prompt, ends = cells.unbind(1)  # [C, 1, 1]
        last = (step.positions >= prompt - ends) & (step.positions < prompt)
        return (step.positions < ends) | last

    def _ends(self, held: Held) -> int:
        """How many tokens were protected at each end: one number for all layers if all waited."""
        count = held.count if self.waits else None
        return boundary(held.kept if count is None else count, self.boundary_share)

    def _planned(self, view: LayerView, count: int) -> Plan:
        return self.bounded(self.plan(view, count), count)

    def _share(self, view: LayerView, count: int) -> tuple[int, Plan]:
        plan = self._planned(view, count)
        if self.budget != "pyramid" and self.protect != "text":
            return count, plan
        fixed = self.fixed(view, plan)
        if count < fixed:
            return fixed, plan._replace(fallback="all_text")
        if self.budget == "pyramid":
            line = pyramid(
                count - fixed, view.length - fixed, view.num_layers, self.pyramid_beta, view.length
            )
            count = fixed + line[view.layer]
            plan = self._of_layer(view, plan, self._planned(view, count))
            if len(set(line)) == 1 and view.num_layers > 1 and count < view.length:
                plan = plan._replace(fallback="uniform")
        return count, plan

    def _of_layer(self, view: LayerView, nominal: Plan, own: Plan) -> Plan:
        """The plan of a layer's own count; protected text is the same on all layers."""
        if self.protect != "text":
            return own
        freed = self.fixed(view, own) - self.fixed(view, nominal)
        past = own.past + freed if own.past else 0
        return own._replace(sinks=nominal.sinks, window=nominal.window, past=past)

    def select_many(self, view: LayerView, budgets: Sequence[int]) -> list[Selection]:
        """As for every policy; with a rule for all layers, of a model that has one layer."""
        if not self.waits or not budgets:
            return super().select_many(view, budgets)
        if view.num_layers > 1:
            raise ValueError(
                f"{self.name}: budget={self.budget} chooses from all layers at once and this is "
                f"one of {view.num_layers}; `rate` each, and give what comes of it to "
                "`select_layers`."
            )
        return self.select_layers([self.rate(view, budgets)])[0]

    @torch.no_grad()
    def rate(self, view: LayerView, budgets: Sequence[int]) -> Rated:
        """As for every policy, with what budget=layers needs besides."""
        rated = super().rate(view, budgets)
        if self.budget != LAYERS:
            return rated
        fixed = [self.fixed(view, plan) for _, plan in rated.shares]
        return rated._replace(preference=self.preference(view), fixed=fixed)

    @torch.no_grad()
    def select_layers(self, rated: Sequence[Rated]) -> list[list[Selection]]:
        """A Selection for each layer and budget, with a rule for all layers."""
        found: list[list[Selection]] = [[] for _ in rated]
        heads = [one.scored.scores.shape[2] for one in rated]
        for index, (count, plan) in enumerate(rated[0].shares):
            every = torch.cat([one.scored.scores[one.row(index)] for one in rated], 1)
            scores, order = every.sort(dim=-1, descending=True, stable=True)
            if self.budget == GLOBAL:
                counts = pooled(scores, count)
            else:
                counts = _by_preference(rated, index, heads)
            parts = zip(rated, order.split(heads, 1), counts.split(heads, 1), strict=True)
            for layer, (one, best, own) in enumerate(parts):
                chosen = Chosen(ascending(best, own), own, plan.fallback)
                found[layer].append(one.selection(index, chosen))
        return found

    def _choose(
        self,
        view: LayerView,
        plan: Plan,
        count: int,
        scores: Tensor,
        order: Tensor,
        free: Tensor | None,
    ) -> Chosen:
        if self.budget != "adaptive" or count == view.length:
            return super()._choose(view, plan, count, scores, order, free)
        fixed = self.fixed(view, plan)
        if free is None:
            free = self._by_scores(scores[..., fixed:], count - fixed)
        counts = fixed + free
        return Chosen(ascending(order, counts), counts, plan.fallback)

    def _by_scores(self, scores: Tensor, count: int) -> Tensor:
        """How many each head keeps of its candidates [B, Hkv, N], which are in descending order."""
        if bool((scores[..., -1:] < 0).any()):
            raise ValueError(
                f"{self.name}: budget=adaptive pools scores that are shares of something, and some "
                "are negative; give non-negative scores or another budget."
            )
        return adaptive(scores, count, self.adaptive_floor)

    def _protection(self, view: LayerView, plans: Sequence[Plan]) -> Tensor | None:
        ranges = super()._protection(view, plans)
        if self.protect != "text":
            return ranges
        if view.modality is None:
            raise ValueError(
                f"{self.name}: protect=text needs to know which tokens are text and the view does "
                "not say; pass LayerView.modality or set protect=none."
            )
        if view.batch > 1:
            raise ValueError(
                f"{self.name}: protect=text takes one prompt at a time; give a batch of 1."
            )
        text = (view.modality == 0)[None, :, None]  # [1, B, 1, L]
        return text if ranges is None else text | ranges


def _by_preference(rated: Sequence[Rated], index: int, heads: Sequence[int]) -> Tensor:
    """How many each head of each layer keeps at a budget, int64 [B, all heads]."""
    wanted = torch.stack([one.preference for one in rated if one.preference is not None], 1)
    certain = max(1, rated[0].fixed[index])  # where nothing is protected, the best one stays
    free = preferred(wanted, rated[0].shares[index][0] - certain, rated[0].length - certain)
    return (certain + free).repeat_interleave(torch.tensor(heads, device=free.device), 1)


def ascending(order: Tensor, counts: Tensor, most: int | None = None) -> Tensor:
    """The first `counts` [B, Hkv] positions of each head's ranking [B, Hkv, L], ascending, with -1
    at the ends of heads that keep fewer. most: the largest count, where the host knows it.
    """
    length = order.shape[-1]
    best = order[..., : int(counts.max()) if most is None else most]
    place = torch.arange(best.shape[-1], device=best.device)
    kept = torch.where(place < counts[..., None], best, length).sort(dim=-1).values
    return kept.masked_fill(kept == length, -1)
