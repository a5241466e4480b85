"""LagKV (arXiv 2504.04704): what varies most on the scale of the tokens that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import WINDOW, require_count, require_flag
from .policy import Plan, Scored
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class LagKV(ScoringPolicy):
    """Score a token by how unevenly its key and value lie in the range of the next `lag` tokens.

    Behind `sinks` first tokens the prompt is cut into parts of `lag` tokens. Each channel of a part
    is put on the scale on which the next part goes from 0 to 1; the standard deviation over
    channels, softmaxed over the part, is a score, and that of the key and that of the value count
    alike. Sinks, the last whole part and what follows it are protected: they have no next part.

    Every part gives up the same fraction, so a token's score is its rank within its part. The
    remainder of an uneven division goes to the earliest parts; the paper's own code rounds down in
    every part, and kvpress leaves it to the order of equal scores. cross=true compares the scores
    of all parts instead.

    A budget that sinks and protected tokens use up, as any does of a prompt that has no two whole
    parts, keeps sinks and last tokens, and Selection.fallback is "streaming_llm". (The paper keeps
    such prompts whole.) The paper compresses again and again while reading and decoding; here the
    whole prompt is ranked once. A channel that is the same all over the next part has no scale: it
    counts as 0 here, and makes the scores of its part undefined in the released codes.
    """

    name: ClassVar[str] = "lagkv"
    title: ClassVar[str] = "LagKV"
    sinks: int = 16
    lag: int = 128
    cross: bool = False

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_count(self.name, "sinks", self.sinks, 0)
        require_count(self.name, "lag", self.lag, 2, WINDOW)
        require_flag(self.name, "cross", self.cross)

    def measure(self, view: LayerView) -> Tensor:
        """Ranks below 1, or with `cross` the scores themselves; the rest by age, above them."""
        found = _by_age(view, self.sinks).expand(view.batch, view.kv_heads, -1) + 1.0
        scored = self._scored(view.length)
        if not scored:
            return found
        parts = (self._spread(view.keys, scored) + self._spread(view.values, scored)) / 2
        if not self.cross:
            order = parts.sort(dim=-1, descending=True, stable=True).indices
            parts = (self.lag - 1 - order.argsort(-1)) / self.lag
        found[..., self.sinks : self.sinks + scored] = parts.flatten(2)
        return found

    def plan(self, view: LayerView, count: int) -> Plan:
        """Sinks and what has no next part are protected, where they leave room for others."""
        scored = self._scored(view.length)
        last = view.length - self.sinks - scored
        if scored and count > self.sinks + last:
            return Plan(self.sinks, last)
        return Plan(0, 0, count, None if count == view.length else "streaming_llm")

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Sinks and last tokens by age where only they are kept."""
        scores = [
            _by_age(view, protected_window(self.sinks, plan.past)).expand_as(measured)
            if plan.past
            else measured
            for plan in plans
        ]
        return Scored(torch.stack(scores), [None] * len(plans))

    def _scored(self, length: int) -> int:
        """Tokens of all parts that have a next one."""
        return max(0, (length - self.sinks) // self.lag - 1) * self.lag

    def _spread(self, states: Tensor, scored: int) -> Tensor:
        """softmax of the deviation over channels, float32 [B, Hkv, parts, lag]."""
        inside = states[:, :, self.sinks : self.sinks + scored + self.lag].float()
        parts = inside.unflatten(2, (-1, self.lag))  # [B, Hkv, parts + 1, lag, d]
        low, high = parts[:, :, 1:].aminmax(dim=3, keepdim=True)
        scale = high - low
        placed = torch.where(scale > 0, (parts[:, :, :-1] - low) / scale, 0.0)
        return placed.std(-1).softmax(-1)


def _by_age(view: LayerView, sinks: int) -> Tensor:
    """Sinks above all others, of which later ones are above earlier ones; float32 [L], 0 to 1."""
    place = torch.arange(view.length, dtype=torch.float32, device=view.keys.device)
    return torch.where(place < sinks, 1.0, place / view.length)
