"""LaCache (arXiv 2507.14204): a ladder of positions that climbs through the layers, no scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require, require_count
from .policy import Plan, Policy, Scored
from .streaming_llm import sinks_and_recent
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
    """

    name: ClassVar[str] = "lacache"
    span: int | None = None
    overlap: int = 0
    start: int = 4

    def __post_init__(self) -> None:
        """Refuse values that do not describe a ladder."""
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
        scores = rows.to(view.keys.device)[:, None, None]
        shape = (len(plans), view.batch, view.kv_heads, view.length)
        return Scored(scores.expand(shape), [None] * len(plans))

    def fits(self, count: int, num_layers: int) -> bool:
        """Whether a ladder fits into `count` kept tokens of a model with that many layers."""
        if num_layers == 1:
            return False
        _, kept = block_shape(num_layers, self._span(num_layers), self.overlap)
        return count >= self.start + num_layers + kept

    def _span(self, num_layers: int) -> int:
        return (num_layers + 1) // 2 if self.span is None else self.span

    def _kept(self, view: LayerView, count: int) -> tuple[int, ...]:
        span = self._span(view.num_layers)
        shape = (view.layer, view.num_layers, span, self.overlap, self.start)
        return exact_ladder(view.length, count, *shape)


def block_shape(num_layers: int, span: int, overlap: int) -> tuple[int, int]:
    """Length of a ladder block and how many of its tokens each layer keeps.

    ValueError where that is all of them.
    """
    step = span - overlap
    if step > 0:
        block = 1 + -((span - num_layers) // step)
        kept = min(-(-span // step), block)
        if kept < block:
            return block, kept
    raise ValueError(
        f"lacache: span={span} with overlap={overlap} leaves nothing to evict on {num_layers} "
        "layers; choose a smaller span or overlap, or span=null."
    )


def ladder(
    length: int, capacity: int, layer: int, num_layers: int, span: int, overlap: int, start: int
) -> list[int]:
    """Ascending positions one compaction of `length` tokens leaves on a layer: about `capacity`.

    Behind the `start` first tokens every block of tokens shrinks to its rung: `kept` tokens that
    move on by one from layer to layer. Blocks are taken from the front until `capacity` is met. If
    the last `num_layers` tokens are reached before that, compaction starts over from the front of
    what is left, with blocks and rungs stretched so that this second pass is enough. Needs capacity
    >= start + num_layers + kept (`block_shape`).
    """
    excess = length - capacity
    if excess <= 0:
        return list(range(length))
    block, kept = block_shape(num_layers, span, overlap)
    spare = block - kept
    most = (capacity - start - num_layers) // kept
    blocks = min(-(-excess // spare), most)
    positions = _compact(list(range(length)), start, layer, block, kept, 1, blocks)
    excess -= blocks * spare
    if excess > 0:
        stretch = -(-excess // (most * spare))
        block = stretch * (block - 1) + 1
        blocks = -(-excess // (block - kept))
        positions = _compact(positions, start, layer, block, kept, stretch, blocks)
    return positions


@lru_cache(maxsize=8192)
def exact_ladder(
    length: int, count: int, layer: int, num_layers: int, span: int, overlap: int, start: int
) -> tuple[int, ...]:
    """`ladder` with exactly `count` positions: short of it, the latest evicted tokens come back."""
    positions = ladder(length, count, layer, num_layers, span, overlap, start)
    missing = count - len(positions)
    if missing > 0:
        present = set(positions)
        evicted = [position for position in range(length) if position not in present]
        positions = sorted(positions + evicted[-missing:])
    return tuple(positions)


def _compact(
    positions: list[int], start: int, layer: int, block: int, kept: int, stretch: int, blocks: int
) -> list[int]:
    """Shrink `blocks` blocks behind the start to `kept` entries each, `stretch` apart."""
    first = start + layer % (block - kept + 1)
    rungs = [first + block * i + stretch * k for i in range(blocks) for k in range(kept)]
    tail = range(start + block * blocks, len(positions))
    # A stretched rung may reach into the tail: every position counts once.
    chosen = sorted({*range(start), *(r for r in rungs if r < len(positions)), *tail})
    return [positions[index] for index in chosen]
