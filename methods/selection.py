"""What a policy makes of a layer: plans, scores, ratings, and the tokens that are kept.

Knows tensors and counts; must not know policies or how they score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """What one policy keeps of one layer at one budget.

    positions: int64 [B, Hkv, n], ascending; where heads keep different numbers, -1 fills the ends.
    counts: int64 [B, Hkv], entries of each head; None: all n. window: number of last tokens that
    were protected. adaptive: share of KV heads whose ReST-KV window differed from the fixed pool, a
    scalar; None for methods without an adaptive window. fallback: what was done where the method's
    own pattern does not fit, or None. carried: float32 [B, Hkv, n], what a policy that holds its
    budget remembers of each kept token, or None. peak: the largest score by absolute value of the
    tokens among which the policy chose, a scalar: no finite number where any score is none, and
    then the choice means nothing; None where there was no choice. queries: float32 [B, H, w, d],
    the last ones times the softmax scale, where the policy recalls them while decoding.
    """

    positions: Tensor
    window: int
    adaptive: float | Tensor | None = None
    fallback: str | None = None
    counts: Tensor | None = None
    carried: Tensor | None = None
    peak: Tensor | None = None
    queries: Tensor | None = None


class Plan(NamedTuple):
    """What scores depend on besides the measurement; budgets with equal plans share them."""

    sinks: int  # first tokens always kept
    window: int  # last tokens always kept
    past: int = 0  # kept tokens outside the window, where the score depends on it
    fallback: str | None = None


class Chosen(NamedTuple):
    """Positions, counts and fallback as in Selection."""

    positions: Tensor
    counts: Tensor | None
    fallback: str | None


class Scored(NamedTuple):
    """Scores of several plans, float32 [plans, B, Hkv, L], and the adaptive share of each plan.

    free: int64 [plans, B, Hkv], what each head keeps besides protected tokens, where that was known
    before its scores and these cannot tell; else None.
    """

    scores: Tensor
    adaptive: Sequence[float | Tensor | None]
    free: Tensor | None = None


class Rated(NamedTuple):
    """How a policy rates the tokens of one layer; of its keys and queries, `queries` alone is held.

    shares: for each budget how many tokens the layer keeps, and the plan. plans: the different ones
    among these, to which `scored` and `peaks` belong; protected tokens are +inf, and peaks are as
    in Selection. remembered: float32 [B, Hkv, L], see Policy.remember. preference: float64 [B], how
    much the layer asks for, and fixed: for each budget how many tokens are protected, where layers
    share by these. queries: as in Selection.
    """

    length: int
    shares: Sequence[tuple[int, Plan]]
    plans: Sequence[Plan]
    scored: Scored
    peaks: Sequence[Tensor]
    remembered: Tensor | None
    preference: Tensor | None = None
    fixed: Sequence[int] = ()
    queries: Tensor | None = None

    def row(self, index: int) -> int:
        """Which of the plans that of a budget is."""
        return self.plans.index(self.shares[index][1])

    def selection(self, index: int, chosen: Chosen) -> Selection:
        """What is kept at a budget."""
        count, plan = self.shares[index]
        row, carried = self.row(index), self.remembered
        if carried is not None:
            carried = carried.gather(-1, chosen.positions.clamp_min(0))
        peak = self.peaks[row] if count < self.length else None
        adaptive = self.scored.adaptive[row]
        kept = chosen.positions, plan.window, adaptive, chosen.fallback, chosen.counts
        return Selection(*kept, carried, peak, self.queries)
