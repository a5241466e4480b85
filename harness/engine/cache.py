"""The compacted caches of all cells of one batch, as transformers' forward passes see them.

Follows the conventions of transformers' caches: lengths count the tokens SEEN. It must not know
how the kept positions were chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from harness.engine.hold import Holder
from harness.engine.rotary import Rotary, Turns
from harness.engine.tile_attention import attend, tile_logits
from harness.engine.tiles import Tiles


class CompactLayer(CacheLayerMixin):
    """Kept prompt entries of every cell, then the tokens decoded since, of one layer.

    heads: KV heads; sequence `cell * heads + head` of the tiles is what that head of that cell
    keeps. seen: tokens so far. holders: policies that evict from some of the cells after every
    step. reindexed: cells whose keys are stored without rotary positions and get those of their
    place in the cache (`rotary`).
    """

    is_sliding = False

    def __init__(
        self,
        tiles: Tiles,
        heads: int,
        seen: int,
        holders: Sequence[Holder] = (),
        reindexed: Sequence[int] = (),
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.tiles = tiles
        self.heads = heads
        self.seen = seen
        self.holders = list(holders)
        self.reindexed = list(reindexed)
        self.rotary = rotary
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tiles exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Count [cells, Hkv, q, d] as seen; `attend` stores them."""
        self.seen += key_states.shape[2]
        return key_states, value_states

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, last: bool = False
    ) -> Tensor:
        """Store new keys and values [cells, Hkv, q, d], and let query [cells, H, q, d] look.

        Then holders evict, unless this is the last pass. Returns [cells, q, H, dv].
        """
        cells, heads, new, dim = query.shape
        if self.reindexed:
            key = self._plain(key)
        self.tiles.append(key.flatten(0, 1), value.flatten(0, 1), self.seen - new)
        rows = heads // self.heads * new
        logits = tile_logits(self.tiles, query.reshape(-1, rows, dim), scaling)
        if self.reindexed:
            self._reindex(logits, query, scaling)
        output, weights = attend(self.tiles, logits, new, self.seen)
        for holder in () if last else self.holders:
            holder.evict(self.tiles, self.heads, weights, new, self.seen)
        return output.view(cells, heads, new, -1).transpose(1, 2)

    def take_off(self, turns: Turns) -> None:
        """Store the prompt keys of re-indexed cells without the turns [1, L, dim] they have."""
        assert self.rotary is not None
        view = self.tiles.view(self.sequences(self.reindexed))
        place = view.places.clamp_min(0)
        cos, sin = (each[0][place] for each in turns)
        plain = self.rotary.undo(view.pick(self.tiles.keys), (cos, sin))
        view.put(self.tiles.keys, plain.to(self.tiles.keys.dtype))

    def _plain(self, key: Tensor) -> Tensor:
        """The new keys, those of re-indexed cells without rotary positions."""
        rotary, turns = self._turns(key)
        plain = rotary.undo(key[self.reindexed], turns)
        return key.index_copy(0, self._cells(key), plain.to(key.dtype))

    def _reindex(self, logits: Tensor, query: Tensor, scaling: float) -> None:
        """Overwrite the logits [T, R, tile] of re-indexed cells."""
        rotary, turns = self._turns(query)
        plain = rotary.undo(query[self.reindexed], turns)  # [C, H, q, d]
        counts = self.tiles.counts.view(-1, self.heads)[self.reindexed, 0].tolist()
        lengths = sorted(set(counts)) if rotary.by_length else [max(counts)]
        for length in lengths:
            own = [i for i, n in enumerate(counts) if n == length or not rotary.by_length]
            self._reindex_some(logits, plain, own, [counts[i] for i in own], length, scaling)

    def _reindex_some(
        self,
        logits: Tensor,
        plain: Tensor,
        own: Sequence[int],
        counts: Sequence[int],
        length: int,
        scaling: float,
    ) -> None:
        assert self.rotary is not None
        new, device = plain.shape[2], plain.device
        cos, sin = self.rotary.table(length, device)
        view = self.tiles.view(self.sequences([self.reindexed[i] for i in own]))
        absent = view.places < 0
        order = view.places.masked_fill(absent, self.seen).argsort(-1).argsort(-1)
        order = order.masked_fill(absent, 0)  # place of each entry in its cache, [s, n]
        keys = self.rotary.turn(view.pick(self.tiles.keys), (cos[order], sin[order]))
        rank = torch.tensor(counts, device=device)[:, None] - new
        rank = (rank + torch.arange(new, device=device))[:, None]  # [C, 1, q]
        queries = self.rotary.turn(plain[list(own)], (cos[rank], sin[rank]))
        rows = queries.reshape(len(order), -1, queries.shape[-1])  # [s, R, d]
        stored = self.tiles.keys.dtype
        products = torch.bmm(rows.to(stored), keys.to(stored).transpose(1, 2))
        view.put_rows(logits, products.float() * scaling)

    def _turns(self, like: Tensor) -> tuple[Rotary, Turns]:
        """What the forward pass turned the re-indexed cells' new tokens by, [C, 1, q, dim]."""
        assert self.rotary is not None
        assert self.rotary.now is not None  # a decoding pass runs while the rotary is following
        cos, sin = (each.expand(like.shape[0], -1, -1) for each in self.rotary.now)
        return self.rotary, (cos[self.reindexed, None], sin[self.reindexed, None])

    def _cells(self, like: Tensor) -> Tensor:
        return torch.tensor(self.reindexed, device=like.device)

    def sequences(self, cells: Sequence[int]) -> Tensor:
        """Sequences of these cells, int64 [cells * heads] on the host."""
        return (torch.tensor(cells)[:, None] * self.heads + torch.arange(self.heads)).flatten()

    def get_seq_length(self) -> int:
        """Tokens seen, not stored."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A plain causal mask over the tokens seen; `attend` looks at the places instead."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: grows without limit."""
        return -1

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only these cells."""
        kept = rows.tolist()
        self.tiles.select(self.sequences(kept))
        place = {cell: row for row, cell in enumerate(kept)}
        self.reindexed = [place[cell] for cell in self.reindexed if cell in place]
        self.holders = [holder for each in self.holders if (holder := each.select(place)).cells]


class CellCache(Cache):
    """The caches of a batch of cells: compact layers, and sliding-window layers as they were."""

    def select(self, rows: Tensor) -> None:
        """Keep only these cells, so that finished ones cost nothing."""
        for layer in self.layers:
            layer.batch_select_indices(rows)


def branch(prompt: Cache, compact: dict[int, CompactLayer], cells: int) -> CellCache:
    """A cache of `cells` rows: the compact layers, and every other layer of the prompt repeated."""
    layers = []
    for index, layer in enumerate(prompt.layers):
        if index in compact:
            layers.append(compact[index])
            continue
        shared = copy.copy(layer)
        shared.keys = layer.keys.expand(cells, -1, -1, -1)
        shared.values = layer.values.expand(cells, -1, -1, -1)
        layers.append(shared)
    return CellCache(layers=layers)
