"""The arithmetic of LaCache: which entries of a cache a ladder leaves on each layer.

Knows integers only; must not know tensors, policies or budgets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Walk(NamedTuple):
    """Behind the `first` entries `blocks` blocks of `block` shrink to `kept`, `stride` apart."""

    first: int
    block: int
    kept: int
    stride: int
    blocks: int

    def split(self, positions: list[int], layer: int) -> tuple[list[int], list[int]]:
        """What a layer keeps and what it evicts; rungs move on by one from layer to layer.

        With stride > 1 rungs of two blocks may meet, and the last may lie beyond the blocks: every
        entry counts once.
        """
        end = min(self.first + self.block * self.blocks, len(positions))
        low = self.first + layer % (self.block - self.kept + 1)
        steps = [self.stride * k for k in range(self.kept)]
        rungs = {low + self.block * i + step for i in range(self.blocks) for step in steps}
        kept = [positions[index] for index in range(self.first, end) if index in rungs]
        evicted = [positions[index] for index in range(self.first, end) if index not in rungs]
        return positions[: self.first] + kept + positions[end:], evicted


class Compaction(NamedTuple):
    """What makes room in a full cache: walks, entries that every layer is left with, new cursor."""

    walks: tuple[Walk, ...]
    entries: int
    cursor: int

    def split(self, positions: list[int], layer: int) -> tuple[list[int], list[int]]:
        """Ascending positions that a layer keeps and evicts."""
        kept, evicted = positions, []
        for walk in self.walks:
            kept, more = walk.split(kept, layer)
            evicted += more
        return recall(kept, sorted(evicted), self.entries)


class Ladder(NamedTuple):
    """A ladder over `num_layers` layers: behind `start` entries, blocks of `block` keep `kept`."""

    num_layers: int
    start: int
    block: int
    kept: int

    def fits(self, capacity: int) -> bool:
        """Whether there is room for the start, one rung, and one token a layer at the end."""
        return capacity >= self.start + self.kept + self.num_layers

    def compaction(self, length: int, cursor: int, capacity: int) -> Compaction:
        """What brings `length` entries down to `capacity` or, by whole blocks, a few less.

        Blocks shrink from the cursor on until that is met. If the last `num_layers` entries are
        reached before, a second walk starts over behind the `start`, with blocks and rungs
        stretched so that it is enough; should it reach the newest entry, the latest ones stay and
        the capacity is met exactly. Needs a capacity that fits.
        """
        excess = length - capacity
        if excess <= 0:
            return Compaction((), length, cursor)
        spare = self.block - self.kept
        blocks = min(-(-excess // spare), (capacity - cursor - self.num_layers) // self.kept)
        walk = Walk(cursor, self.block, self.kept, 1, blocks)
        excess -= blocks * spare
        if excess <= 0:
            return Compaction((walk,), capacity + excess, cursor + blocks * self.kept)
        most = (capacity - self.start - self.num_layers) // self.kept
        stride = -(-excess // (most * spare))
        block = stride * (self.block - 1) + 1
        blocks = -(-excess // (block - self.kept))
        again = Walk(self.start, block, self.kept, stride, blocks)
        length = capacity + excess
        reaches = self.start + block * blocks >= length
        entries = capacity if reaches else length - blocks * (block - self.kept)
        return Compaction((walk, again), entries, self.start + blocks * self.kept)


@lru_cache(maxsize=256)
def build(num_layers: int, span: int, overlap: int, start: int) -> Ladder:
    """The ladder of these parameters. ValueError where its rungs are whole blocks."""
    step = span - overlap
    if step > 0:
        block = 1 + -((span - num_layers) // step)
        kept = min(-(-span // step), block)
        if kept < block:
            return Ladder(num_layers, start, block, kept)
    raise ValueError(
        f"lacache: span={span} with overlap={overlap} leaves nothing to evict on {num_layers} "
        "layers; choose a smaller span or overlap, or span=null."
    )


def recall(kept: list[int], evicted: list[int], count: int) -> tuple[list[int], list[int]]:
    """Give the latest evicted positions back until `count` are kept."""
    missing = count - len(kept)
    if missing <= 0:
        return kept, evicted
    return sorted(kept + evicted[-missing:]), evicted[:-missing]


@lru_cache(maxsize=512)
def select(ladder: Ladder, length: int, count: int, layer: int) -> tuple[int, ...]:
    """Exactly `count` ascending positions that a layer keeps of `length` tokens."""
    compaction = ladder.compaction(length, ladder.start, count)
    kept, evicted = compaction.split(list(range(length)), layer)
    return tuple(recall(kept, evicted, count)[0])


class Climb:
    """The caches of all layers while tokens arrive: compacted whenever they are `period` tokens or
    more over the capacity.

    They begin with `kept` of the `prompt` first tokens (`select`). The next `tail` tokens arrive
    together, later ones one by one. Only the latest step is remembered: asking for an earlier one
    begins anew.
    """

    def __init__(
        self, ladder: Ladder, prompt: int, kept: int, capacity: int, tail: int, period: int = 1
    ) -> None:
        """Begin after the prompt."""
        self._ladder, self._prompt, self._kept = ladder, prompt, kept
        self._capacity, self._first_step = capacity, prompt + max(1, tail)
        self._period = period
        self._begin()

    def evicted(self, seen: int) -> list[list[int]]:
        """Positions each layer drops at the step that ends with `seen` tokens, ascending."""
        if seen < self._first_step:
            raise ValueError(
                f"lacache: no step ends with {seen} tokens; the first ends with {self._first_step}."
            )
        if seen < self._seen:
            self._begin()
        while self._seen < seen:
            self._advance(max(self._seen + 1, self._first_step))
        return self._evicted

    def _begin(self) -> None:
        ladder = self._ladder
        layers = range(ladder.num_layers)
        self._seen = self._prompt
        self.cursor = ladder.compaction(self._prompt, ladder.start, self._kept).cursor
        self._layers = [list(select(ladder, self._prompt, self._kept, layer)) for layer in layers]
        self._evicted: list[list[int]] = [[] for _ in layers]

    def _advance(self, seen: int) -> None:
        new = range(self._seen, seen)
        length = len(self._layers[0]) + len(new)
        waits = length - self._capacity < self._period
        capacity = length if waits else self._capacity
        compaction = self._ladder.compaction(length, self.cursor, capacity)
        pairs = [compaction.split([*kept, *new], i) for i, kept in enumerate(self._layers)]
        self._layers = [kept for kept, _ in pairs]
        self._evicted = [evicted for _, evicted in pairs]
        self.cursor, self._seen = compaction.cursor, seen


climb = lru_cache(maxsize=64)(Climb)  # enough for a batch; one of a long prompt takes megabytes
