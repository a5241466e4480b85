"""What methods share whose scores can be compared: budgets by layer and head, and spared text.

Knows policies and budget rules; must not know any one method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .budgets import RULES, adaptive, pyramid
from .checks import require_choice, require_count, require_number
from .holding import Step
from .policy import Chosen, Plan, Policy
from .view import LayerView

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class ScoringPolicy(Policy):
    """A policy whose scores can be compared: budgets may differ by layer and head.

    budget: uniform = every head of every layer keeps as many; pyramid = fewer from layer to layer
    (budgets.pyramid, with pyramid_beta); adaptive = heads of a layer share its budget by their
    pooled scores (budgets.adaptive, with adaptive_floor), none of which may be negative. The total
    is the same.
    protect: text = of the prompt, only image tokens are evicted; where there is more text than
    budget, all of it is kept and Selection.fallback is "all_text". While a budget is held, new
    tokens compete with what is left of the images.
    """

    budget: str = "uniform"
    pyramid_beta: int = 20
    adaptive_floor: float = 0.2
    protect: str = "none"

    def __post_init__(self) -> None:
        """Refuse values that no method has a meaning for."""
        require_choice(self.name, "budget", self.budget, RULES)
        require_count(self.name, "pyramid_beta", self.pyramid_beta, 1, 1_000_000)
        require_number(self.name, "adaptive_floor", self.adaptive_floor, 0, 1)
        require_choice(self.name, "protect", self.protect, ("none", "text"))

    def fixed(self, view: LayerView, plan: Plan) -> int:
        """How many tokens are protected."""
        if self.protect == "none":
            return plan.sinks + plan.window
        mask = self._protection(view, [plan])
        assert mask is not None  # there is a text mask
        return int(mask[0, 0, 0].sum())

    def ranked(self, step: Step, carried: Tensor | None) -> Tensor:
        """As for every policy, with the prompt's text above all else where it is protected."""
        standing = super().ranked(step, carried)
        if step.text is None:
            return standing
        # What else is protected goes by age once nothing unprotected is left.
        aged = _LARGEST * ((step.positions + 1) / (step.seen + 1))
        return torch.where(standing.isinf(), aged, standing).masked_fill(step.text, torch.inf)

    def _share(self, view: LayerView, count: int) -> tuple[int, Plan]:
        plan = self.plan(view, count)
        if self.budget != "pyramid" and self.protect == "none":
            return count, plan
        fixed = self.fixed(view, plan)
        if count < fixed:
            return fixed, plan._replace(fallback="all_text")
        if self.budget == "pyramid":
            line = pyramid(
                count - fixed, view.length - fixed, view.num_layers, self.pyramid_beta, view.length
            )
            count = fixed + line[view.layer]
            plan = self._of_layer(view, plan, self.plan(view, count))
            if len(set(line)) == 1 and view.num_layers > 1 and count < view.length:
                plan = plan._replace(fallback="uniform")
        return count, plan

    def _of_layer(self, view: LayerView, nominal: Plan, own: Plan) -> Plan:
        """The plan of a layer's own count; protected text is the same on all layers."""
        if self.protect == "none":
            return own
        freed = self.fixed(view, own) - self.fixed(view, nominal)
        past = own.past + freed if own.past else 0
        return own._replace(sinks=nominal.sinks, window=nominal.window, past=past)

    def _choose(
        self, view: LayerView, plan: Plan, count: int, scores: Tensor, order: Tensor
    ) -> Chosen:
        if self.budget != "adaptive" or count == view.length:
            return super()._choose(view, plan, count, scores, order)
        fixed = self.fixed(view, plan)
        if bool((scores[..., -1:] < 0).any()):
            raise ValueError(
                f"{self.name}: budget=adaptive pools scores that are shares of something, and some "
                "are negative; give non-negative scores or another budget."
            )
        free = adaptive(scores[..., fixed:], count - fixed, self.adaptive_floor)
        counts = fixed + free
        best = order[..., : int(counts.max())]
        place = torch.arange(best.shape[-1], device=best.device)
        kept = torch.where(place < counts[..., None], best, view.length).sort(dim=-1).values
        positions = kept.masked_fill(kept == view.length, -1)
        return Chosen(positions, counts, plan.fallback)

    def _protection(self, view: LayerView, plans: Sequence[Plan]) -> Tensor | None:
        ranges = super()._protection(view, plans)
        if self.protect == "none":
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
