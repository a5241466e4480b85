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

from harness.engine.hold import Holder, evict
from harness.engine.rotary import Rotary, Turns
from harness.engine.tile_attention import attend, product, tile_logits
from harness.engine.tiles import Tiles, View, send

_ROWS = 64  # query rows of a KV head that are worked on together


class CompactLayer(CacheLayerMixin):
    """Kept prompt entries of every cell, then the tokens decoded since, of one layer.

    heads: KV heads; sequence `cell * heads + head` of the tiles is what that head of that cell
    keeps. seen: tokens so far. holders: policies that evict from some of the cells after every
    step. reindexed: cells whose keys are stored without rotary positions and get those of their
    place in the cache (`rotary`).
    """

    is_sliding = False

    def __init__(self, tiles: Tiles, heads: int, seen: int, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.tiles = tiles
        self.heads = heads
        self.seen = seen
        self.rotary = rotary
        self.holders: list[Holder] = []
        self.reindexed: list[int] = []
        self.is_initialized = True
        self._waiting = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tiles exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Count [cells, Hkv, q, d] as seen; `attend` stores them."""
        self._wait_for_attention(True)
        self.seen += key_states.shape[2]
        return key_states, value_states

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, last: bool = False
    ) -> Tensor:
        """Store new keys and values [cells, Hkv, q, d], and let query [cells, H, q, d] look.

        Then holders evict, unless this is the last pass. Returns [cells, q, H, dv].
        """
        self._wait_for_attention(False)
        new = query.shape[2]
        if self.reindexed:
            key = self._plain(key)
        self.tiles.append(key.flatten(0, 1), value.flatten(0, 1), self.seen - new)
        observed = any(holder.policy.observes for holder in self.holders) and not last
        outputs, rows = [], []
        # Many tokens go by in blocks: their queries are repeated for every tile.
        block = max(1, _ROWS * self.heads // query.shape[1])
        for part, first in zip(query.split(block, 2), range(0, new, block), strict=True):
            output, weights = self._look(part, new - first, scaling)
            outputs.append(output)
            if observed:
                rows.append(weights.unflatten(1, (-1, part.shape[2])))
        seen = torch.cat(rows, dim=2).flatten(1, 2) if rows else None
        if self.holders and not last:
            evict(self.holders, self.tiles, self.heads, seen, new, self.seen)
        return torch.cat(outputs, dim=1)

    def _look(self, query: Tensor, back: int, scaling: float) -> tuple[Tensor, Tensor]:
        """Attention of some new tokens, the first of them token seen - back.

        query [cells, H, q, d] -> output [cells, q, H, dv] and weights [T, g * q, tile].
        """
        cells, heads, new, dim = query.shape
        rows = heads // self.heads * new
        logits = tile_logits(self.tiles, query.reshape(-1, rows, dim), scaling)
        if self.reindexed:
            self._reindex(logits, query, back, scaling)
        tokens = range(self.seen - back, self.seen - back + new)
        output, weights = attend(self.tiles, logits, tokens)
        return output.view(cells, heads, new, -1).transpose(1, 2), weights

    def _wait_for_attention(self, waiting: bool) -> None:
        """ValueError unless every update of the layer is followed by one attention."""
        if self._waiting == waiting:
            raise ValueError(
                "the model's layers do not attend exactly once for each update of their cache, so "
                "it cannot be evicted; choose a model with plain self-attention."
            )
        self._waiting = waiting

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
        rotary, turns = self._turns(key, key.shape[2])
        cells = send(torch.tensor(self.reindexed), key.device)
        plain = rotary.undo(key.index_select(0, cells), turns)
        return key.index_copy(0, cells, plain.to(key.dtype))

    def _reindex(self, logits: Tensor, query: Tensor, back: int, scaling: float) -> None:
        """Overwrite the logits [T, R, tile] of re-indexed cells."""
        rotary, turns = self._turns(query, back)
        cells = send(torch.tensor(self.reindexed), query.device)
        plain = rotary.undo(query.index_select(0, cells), turns)  # [C, H, q, d]
        counts = self.tiles.counts.view(-1, self.heads)[self.reindexed]  # [C, Hkv]
        longest = counts.amax(1).tolist()
        lengths = sorted(set(longest)) if rotary.by_length else [max(longest)]
        for length in lengths:
            own = [i for i, n in enumerate(longest) if n == length or not rotary.by_length]
            some = self.tiles.view(self.sequences([self.reindexed[i] for i in own]))
            turns = rotary.table(length, query.device)
            keys = rotary.turn(some.pick(self.tiles.keys), _at(turns, self._ranks(some)))
            # The place of a query is that of its own entry; entries behind it are hidden from it.
            place = send(counts[own] - back, query.device)[..., None]
            place = place + torch.arange(query.shape[2], device=query.device)  # [C, Hkv, q]
            place = place.repeat_interleave(query.shape[1] // self.heads, 1)
            queries = rotary.turn(plain[own], _at(turns, place))
            rows = queries.reshape(len(keys), -1, queries.shape[-1])  # [s, R, d]
            stored = self.tiles.keys.dtype
            products = product(rows.to(stored), keys.to(stored).transpose(1, 2))
            some.put_rows(logits, products * scaling)

    def _ranks(self, some: View) -> Tensor:
        """Place of each entry in its sequence by age, int64 [s, n]; 0 where there is none."""
        absent = some.places < 0
        order = some.places.masked_fill(absent, self.seen).argsort(-1).argsort(-1)
        return order.masked_fill(absent, 0)

    def _turns(self, like: Tensor, back: int) -> tuple[Rotary, Turns]:
        """What the forward pass turned re-indexed cells by, [C, 1, q, dim], from seen - back on."""
        assert self.rotary is not None
        assert self.rotary.now is not None  # a decoding pass runs while the rotary is following
        cells, new = like.shape[0], like.shape[2]
        chosen = send(torch.tensor(self.reindexed), like.device)
        cos, sin = (
            each.expand(cells, -1, -1).index_select(0, chosen)[:, None, -back:][:, :, :new]
            for each in self.rotary.now
        )
        return self.rotary, (cos, sin)

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


def _at(turns: Turns, place: Tensor) -> Turns:
    return turns[0][place], turns[1][place]
