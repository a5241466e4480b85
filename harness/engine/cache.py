"""The compacted caches of all cells of one batch, as transformers' forward passes see them.

Follows the conventions of transformers' caches: lengths count the tokens SEEN. It must not know
how the kept positions were chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from harness.engine.contest import Contest
from harness.engine.hold import Shown, evict
from harness.engine.holder import Holder
from harness.engine.reindexed import sequences_of, turns_of
from harness.engine.rotary import Rotary
from harness.engine.tiles import Tiles
from harness.engine.views import joined
from methods.kernels import Run, Turning, ragged_attention, shared

_ROWS = 64  # query rows of a KV head at once: plain torch holds all their weights


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
        self.token = torch.full((1,), seen, device=tiles.keys.device)  # the next one's index
        self.rotary = rotary
        self.holders: list[Holder] = []
        self.reindexed: list[int] = []
        self.is_initialized = True
        self._waiting = False

    @property
    def counts(self) -> Tensor:
        """Entries of each sequence, int64 on the host."""
        return self.tiles.counts

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that hold keys and values."""
        return self.tiles.keys.nbytes + self.tiles.values.nbytes

    def sizes(self) -> Tensor:
        """Bytes that the entries of each sequence take, int64 [S] on the host."""
        keys, values = self.tiles.keys, self.tiles.values
        token = (keys.shape[-1] + values.shape[-1]) * keys.element_size()
        return self.tiles.counts * token

    def host_sizes(self) -> Tensor:
        """Bytes that the entries of each sequence take on the host, int64 [S] on the host."""
        return torch.zeros_like(self.tiles.counts)

    def held(self) -> list[tuple[Tensor, Tensor]]:
        """Places int64 [T, n] of all entries, -1 where there is none, and owner [T] of each row."""
        return [(self.tiles.places, self.tiles.owner)]

    def readable(self, query: Tensor, token: Tensor, scaling: float) -> Tiles:
        """All entries that are read by queries [cells, H, q, d] from `token` on, int64 [1]."""
        return self.tiles

    def weights_of_tiles(self, weights: Tensor) -> Tensor:
        """Weights of what is readable as those of the tiles."""
        return weights

    def settle(self) -> None:
        """Before new entries come: nothing to do for tiles."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store new entries [S, q, d] of every sequence."""
        self.tiles.append(keys, values, self.token)

    def copy(self) -> CompactLayer:
        """The same entries once more, of which nobody evicts yet."""
        own = copy.copy(self)
        own.tiles, own.token, own.holders = self.tiles.copy(), self.token.clone(), []
        return own

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
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        last: bool = False,
        later: list[Shown] | None = None,
        hidden: Tensor | None = None,
        contest: Contest | None = None,
    ) -> Tensor:
        """Store new keys and values [cells, Hkv, q, d], and let query [cells, H, q, d] look.

        Then holders evict, unless this is the last pass. Where it is faster they go to `later` and
        evict with those of other layers; where layers compete they enter the `contest`. hidden:
        what entered attention, [cells, q, C], if a holder sees it. Returns [cells, q, H, dv].
        """
        self._wait_for_attention(False)
        new = query.shape[2]
        for holder in self.holders:
            holder.watch(query, scaling)
        if self.reindexed:
            cells, plain = self._plain(key)
            key = key.index_copy(0, cells, plain.to(key.dtype))
        self.settle()
        self.append(key.flatten(0, 1), value.flatten(0, 1))
        pool, turning = self.readable(query, self.token, scaling), None
        if self.reindexed:
            turning = turns_of(pool, self.heads, self.reindexed, self.rotary, self.seen)
            query = self._turned(query, turning, pool)
        observed = any(holder.policy.observes for holder in self.holders) and not last
        runs = pool.runs() if turning is None else None
        outputs, rows = [], []
        block = self._block(query.shape[1])
        for part, first in zip(query.split(block, 2), range(0, new, block), strict=True):
            output, weights = self._look(part, first, pool, scaling, observed, turning, runs)
            outputs.append(output)
            if weights is not None:
                rows.append(weights.unflatten(1, (-1, part.shape[2])))
        self.token += new
        seen = joined(rows, 2).flatten(1, 2) if rows else None
        if self.holders and not last:
            own = None if seen is None else self.weights_of_tiles(seen)
            about = own, new, self.seen, hidden, contest
            shown = Shown(self.holders, self.tiles, self.heads, *about)
            if later is not None and new == 1 and self.tiles.in_torch() and shown.spans():
                later.append(shown)
            else:
                evict([shown])
        return joined(outputs, 1)

    def share(self, query: Tensor, scaling: float) -> Tensor:
        """Let queries [cells, H, q, d] of a layer that shares these keys look, behind `attend`.

        Returns [cells, q, H, dv]. Nothing is stored or evicted.
        """
        new = query.shape[2]
        pool, turning = self.readable(query, self.token - new, scaling), None
        if self.reindexed:
            turning = turns_of(pool, self.heads, self.reindexed, self.rotary, self.seen)
            query = self._turned(query, turning, pool)
        runs = pool.runs() if turning is None else None
        block = self._block(query.shape[1])
        parts = zip(query.split(block, 2), range(-new, 0, block), strict=True)
        looks = [self._look(q, at, pool, scaling, False, turning, runs)[0] for q, at in parts]
        return joined(looks, 1)

    def _block(self, heads: int) -> int:
        """New tokens that look at once; two at least, for one alone is taken to be the last."""
        return max(2, _ROWS * self.heads // heads)

    def _look(
        self,
        query: Tensor,
        first: int,
        tiles: Tiles,
        scaling: float,
        observed: bool,
        turning: Turning | None,
        runs: list[Run] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of some of the new tokens, from the `first` of them on.

        query [cells, H, q, d] -> output [cells, q, H, dv], and weights [T, g * q, tile] if a policy
        observes.
        """
        cells, heads, new, dim = query.shape
        output, weights = ragged_attention(
            query.reshape(cells * self.heads, -1, dim),
            tiles.keys,
            tiles.values,
            tiles.places,
            tiles.device_table,
            tiles.device_counts,
            tiles.owner,
            self.token + first if first else self.token,
            new,
            scaling,
            observed,
            turning,
            runs,
        )
        return output.view(cells, heads, new, -1).transpose(1, 2), weights

    def _wait_for_attention(self, waiting: bool) -> None:
        """ValueError unless every update of the layer is followed by one attention."""
        if self._waiting == waiting:
            raise ValueError(
                "the model's layers do not attend exactly once for each update of their cache, so "
                "it cannot be evicted; choose a model with plain self-attention."
            )
        self._waiting = waiting

    def _plain(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """Re-indexed cells [C], and their part of new keys or queries [cells, heads, q, d] as it
        was before it was rotated: float32 [C, heads, q, d].
        """
        assert self.rotary is not None
        assert self.rotary.now is not None  # a decoding pass runs while the rotary is following
        cells = shared(torch.tensor(self.reindexed), new.device)
        cos, sin = (
            each.expand(new.shape[0], -1, -1).index_select(0, cells)[:, None]
            for each in self.rotary.now
        )
        return cells, self.rotary.undo(new.index_select(0, cells), (cos, sin))

    def _turned(self, query: Tensor, turning: Turning, tiles: Tiles) -> Tensor:
        """Queries [cells, H, q, d], those of re-indexed cells turned by their place instead."""
        assert self.rotary is not None
        new = query.shape[2]
        cells, plain = self._plain(query)
        own = shared(sequences_of(self.reindexed, self.heads), query.device)
        # The place of a query is that of its own entry.
        place = (turning.start[own] + tiles.device_counts[own] - new)[:, None]
        place = place + torch.arange(new, device=query.device)  # [C * Hkv, q]
        place = place.view(len(cells), -1, new).repeat_interleave(query.shape[1] // self.heads, 1)
        turns = turning.cosines[place], turning.sines[place]
        return query.index_copy(0, cells, self.rotary.turn(plain, turns).to(query.dtype))

    def count(self, more: int = 0) -> tuple[int, Tensor]:
        """What the host counts, `more` tokens later: those seen, and entries of each sequence."""
        return self.seen + more, self.tiles.counts + more

    def recount(self, counted: tuple[int, Tensor]) -> None:
        """Let the host count from there."""
        self.seen, counts = counted
        self.tiles.recount(counts)
        self._waiting = False

    def rewind(self) -> None:
        """Undo the last token, of a layer that evicts nothing."""
        self.recount(self.count(-1))
        self.token -= 1
        self.tiles.device_counts -= 1

    def restore(self, counted: tuple[int, Tensor], more: int) -> None:
        """Let host and device count from `more` tokens after that."""
        seen, counts = counted
        self.recount((seen + more, counts + more))
        self.token.fill_(self.seen)
        self.tiles.device_counts.copy_(self.tiles.counts)

    def agrees(self) -> bool:
        """Whether the device counts what the host counts; waits for the device."""
        counts = self.tiles.device_counts.cpu()
        return int(self.token) == self.seen and torch.equal(counts.long(), self.tiles.counts)

    def sequences(self, cells: Sequence[int]) -> Tensor:
        """Sequences of these cells, int64 [cells * heads] on the host."""
        return sequences_of(cells, self.heads)

    def get_seq_length(self) -> int:
        """Tokens seen, not stored."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A plain causal mask over the tokens seen; `attend` looks at the places instead."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: grows without limit."""
        return -1

    def changing(self) -> set[int]:
        """Cells for which the host decides something at every step."""
        return {cell for holder in self.holders for cell in holder.cells} | set(self.reindexed)

    def part(self, rows: Tensor) -> CompactLayer:
        """A layer of these cells (int64 on the host) alone, which goes on by itself."""
        self.tiles.close()
        own = copy.copy(self)
        own.tiles, own.token = copy.copy(self.tiles), self.token.clone()
        own.batch_select_indices(rows)
        return own

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only these cells, int64 on the host."""
        kept = rows.tolist()
        self.tiles.select(self.sequences(kept))
        place = {cell: row for row, cell in enumerate(kept)}
        self.reindexed = [place[cell] for cell in self.reindexed if cell in place]
        self.holders = [holder for each in self.holders if (holder := each.select(place)).cells]
        if not self.holders:
            self.tiles.carried = None  # nobody asks for it any more
