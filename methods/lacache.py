"""LaCache (arXiv 2507.14204): a ladder of positions that climbs through the layers, no scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from . import ladder
from .checks import BUFFER, require, require_count, require_decode, require_positions
from .holding import Due, Held, Rule, Step
from .kernels import send, shared
from .kernels.lowest_entries import BY_PLACE
from .policy import Plan, Policy, Scored
from .streaming_llm import sinks_and_recent, sliding, sliding_rule
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class LaCache(Policy):
    """Keep the first tokens, the recent ones, and in between a ladder that differs by layer.

    span: number of layers a token stays in, None for half the layers (16 of 32, the published
    setting; every other token of the ladder on alternate layers). overlap: layers two ladders
    share. start: first tokens always kept.

    Exactly the budget is kept, every position once and in order. The released code may keep fewer
    (then the latest evicted tokens come back), a few more (it raises its capacity at the first
    call) or some twice. A ladder needs room for `start`, one token a layer at the end and one rung,
    and at least two layers; where it does not fit, the pattern of StreamingLLM with `start` sinks
    is kept and Selection.fallback says so. ValueError where span and overlap leave nothing to
    evict.

    decode: hold compacts the cache whenever it is over its limit, as published: a cursor walks from
    the start towards the recent end, block after block becomes a rung, and then it starts over; as
    a whole block shrinks at a time, a few entries less than the limit may stay. Where the prompt
    had no room for a ladder, or nothing was evicted and the limit has none, the recent tokens slide
    as in StreamingLLM. buffer: the same whenever the cache is `buffer` tokens over its limit. grow
    selects once, after the prompt. positions: original, or cache for rotary positions by the place
    in the cache, as published, which only models with 1-D rotary positions have.
    """

    name: ClassVar[str] = "lacache"
    title: ClassVar[str] = "LaCache"
    spans_layers: ClassVar[bool] = True
    span: int | None = None
    overlap: int = 0
    start: int = 4
    decode: str = "hold"
    buffer: int = BUFFER
    positions: str = "original"

    def __post_init__(self) -> None:
        """Refuse values that do not describe a ladder."""
        require_decode(self)
        require_positions(self)
        require_count(self.name, "overlap", self.overlap, 0)
        require_count(self.name, "start", self.start, 0)
        if self.span is not None:
            require_count(self.name, "span", self.span, 1)
            allowed = f"fewer layers than span={self.span}"
            require(self.overlap < self.span, self.name, "overlap", self.overlap, allowed)

    def measure(self, view: LayerView) -> Tensor:
        """Nothing is measured: the ladder depends on lengths only."""
        return torch.zeros((), device=view.keys.device)

    def plan(self, view: LayerView, count: int) -> Plan:
        """Start and recent end are protected; the ladder in between depends on the count."""
        if count == view.length:
            return Plan(0, count)
        if not self.fits(count, view.num_layers):
            return sinks_and_recent(self.start, count, fallback="streaming_llm")
        kept = self._kept(view, count)
        end = next((i for i in range(view.num_layers) if kept[-1 - i] != view.length - 1 - i), None)
        return Plan(self.start, view.num_layers if end is None else end, past=count)

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """1 for the positions of the ladder, 0 for the others."""
        rows = torch.zeros(len(plans), view.length)
        for row, plan in zip(rows, plans, strict=True):
            if plan.past:
                row[list(self._kept(view, plan.past))] = 1.0
        scores = send(rows, view.keys.device)[:, None, None]
        shape = (len(plans), view.batch, view.kv_heads, view.length)
        return Scored(scores.expand(shape), [None] * len(plans))

    def fits(self, count: int, num_layers: int) -> bool:
        """Whether a ladder fits into `count` kept tokens of a model with that many layers."""
        return num_layers > 1 and self._ladder(num_layers).fits(count)

    def evictions(self, held: Held, grown: int, seen: int, num_layers: int) -> int:
        """Whole blocks shrink at a time: as many entries on every layer."""
        if not self._climbs(held, num_layers):
            return super().evictions(held, grown, seen, num_layers)
        return len(self._evicted(held, seen, num_layers)[0])

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """The position, start above all, and below all what the ladder drops at this step."""
        if not any(self._climbs(held, step.num_layers) for held in step.held):
            return sliding(self.start, step)
        device = step.positions.device
        alike = {held: i for i, held in enumerate(dict.fromkeys(step.held))}
        every = _dropped(self, tuple(alike), step.seen, step.num_layers, device)
        layer = step.layer if isinstance(step.layer, int) else step.layer.flatten()
        index = every[layer, shared(torch.tensor([alike[each] for each in step.held]), device)]
        table = torch.zeros(len(index), step.seen + 1, dtype=torch.bool, device=device)
        table = table.scatter_(1, index, True)[:, None].expand(-1, step.positions.shape[1], -1)
        lowest = table.gather(2, step.positions.clamp_min(0))
        return sliding(self.start, step).masked_fill(lowest, -1.0)

    def rule(self, due: Due) -> Rule:
        """The place that a ladder drops; as in StreamingLLM where none climbs."""
        slides = sliding_rule(self.start, due.budgets)
        climbs = torch.tensor([[self._climbs(each, due.num_layers)] for each in due.held])
        if not bool(climbs.any()):
            return slides
        every = _dropped(self, tuple(due.held), due.seen, due.num_layers, due.device)
        index = torch.arange(len(climbs))[:, None]
        return Rule(
            torch.where(climbs, BY_PLACE, slides.by),
            torch.where(climbs, index, slides.first),
            slides.last,
            every[due.layer, :, 0],
        )

    def _climbs(self, held: Held, num_layers: int) -> bool:
        """Whether a ladder goes on; a prompt that was cut to another pattern keeps that one."""
        whole = held.kept == held.prompt
        return self.fits(held.limit if whole else held.kept, num_layers)

    def dropped(self, held: Held, seen: int, num_layers: int) -> list[list[int]]:
        """Positions that the ladder of a cell drops on each layer; none where nothing climbs."""
        if not self._climbs(held, num_layers):
            return [[] for _ in range(num_layers)]
        return self._evicted(held, seen, num_layers)

    def _evicted(self, held: Held, seen: int, num_layers: int) -> list[list[int]]:
        told = self._ladder(num_layers), held.prompt, held.kept, held.limit, held.tail
        return ladder.climb(*told, self.period).evicted(seen)

    def _ladder(self, num_layers: int) -> ladder.Ladder:
        span = (num_layers + 1) // 2 if self.span is None else self.span
        return ladder.build(num_layers, span, self.overlap, self.start)

    def _kept(self, view: LayerView, count: int) -> tuple[int, ...]:
        return ladder.select(self._ladder(view.num_layers), view.length, count, view.layer)


@lru_cache(maxsize=32)
def _dropped(
    policy: LaCache, held: tuple[Held, ...], seen: int, num_layers: int, device: torch.device
) -> Tensor:
    """What all layers drop at a step, sent at once: int64 [layers, C, width].

    Rows are padded with `seen`, a position that no token has.
    """
    cells = [policy.dropped(each, seen, num_layers) for each in held]
    width = max(len(row) for cell in cells for row in cell)
    padded = [
        [row + [seen] * (width - len(row)) for row in layer] for layer in zip(*cells, strict=True)
    ]
    return send(torch.tensor(padded, dtype=torch.long), device)
