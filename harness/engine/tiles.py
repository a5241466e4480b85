"""Entries of many sequences in one pool of fixed-size tiles, none longer than it needs to be.

A sequence is what one KV head of one cell keeps. Each has tiles of its own and fills them one after
the other, so sequences of any lengths share a pool and at most one tile of each is partly empty.
Which tile belongs to whom is known on the host, so no result of the device is waited for. It must
not know models, policies or cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

SMALL, LARGE = 16, 64  # entries a tile: small ones waste little, large ones multiply faster


class Tiles:
    """A pool of T tiles for S sequences.

    keys [T, tile, d], values [T, tile, dv]; places int64 [T, tile], the index in the sequence of
    the token of each entry, -1 where there is none; carried float32 [T, tile] or None. owner int64
    [T]: the sequence of a tile. On the host: counts int64 [S]; table int64 [S, blocks], the tile of
    each block of a sequence, -1 behind its last.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        counts: Tensor,
        blocks: Tensor,
        carried: Tensor | None = None,
    ) -> None:
        """Tiles lie in the order of the sequences, `blocks` int64 [S] of each."""
        self.keys, self.values, self.places, self.carried = keys, values, places, carried
        self.counts = counts
        self.table, owner = _index(blocks)
        self.owner = send(owner, keys.device)

    @property
    def size(self) -> int:
        """Entries a tile."""
        return self.keys.shape[1]

    @classmethod
    def gather(
        cls,
        keys: Tensor,
        values: Tensor,
        places: Sequence[Tensor],
        counts: Sequence[Sequence[int]],
        carried: Sequence[Tensor | None],
    ) -> Tiles:
        """Copy prompt entries into tiles.

        keys, values [1, heads, L, d]; for each cell places int64 [heads, n] of which the first
        counts[head] of each row are used, and carried float32 [heads, n] or None.
        """
        heads, length = keys.shape[1:3]
        longest = max(max(each) for each in counts)
        size = SMALL if longest < 32 * SMALL else LARGE
        entries = torch.tensor([list(each) for each in counts])  # [cells, heads]
        blocks = entries // size + 1  # room for the next token in every sequence
        blocks = blocks.flatten()
        where = _tile(places, blocks, size, -1)
        owner = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
        source = send(owner % heads, keys.device)[:, None] * length + where.clamp_min(0)
        remembered = None
        if any(each is not None for each in carried):
            floats = [
                own.new_zeros(own.shape, dtype=torch.float32) if kept is None else kept
                for own, kept in zip(places, carried, strict=True)
            ]
            remembered = _tile(floats, blocks, size, 0)
        taken = (_take(keys, source), _take(values, source))
        return cls(*taken, where, entries.flatten(), blocks, remembered)

    def append(self, keys: Tensor, values: Tensor, first: int) -> None:
        """Add entries [S, q, d] of tokens first..first + q - 1 to every sequence."""
        new = keys.shape[1]
        self._make_room(new)
        order = self.counts[:, None] + torch.arange(new)  # [S, q]
        tiles = self.table.gather(1, order // self.size)
        slots = (tiles * self.size + order % self.size).flatten()
        slots = send(slots, self.keys.device)
        _flat(self.keys).index_copy_(0, slots, keys.flatten(0, 1))
        _flat(self.values).index_copy_(0, slots, values.flatten(0, 1))
        tokens = torch.arange(first, first + new, device=slots.device)
        self.places.view(-1).index_copy_(0, slots, tokens.repeat(len(self.counts)))
        if self.carried is not None:
            self.carried.view(-1).index_fill_(0, slots, 0.0)
        self.counts = self.counts + new

    def _make_room(self, new: int) -> None:
        """Give tiles to the sequences that need them for `new` more entries."""
        have = (self.table >= 0).sum(1)
        missing = (self.counts + new + self.size - 1) // self.size - have
        missing.clamp_min_(0)
        added = int(missing.sum())
        if not added:
            return
        total = len(self.owner)
        self.keys = pad(self.keys, (0, 0, 0, 0, 0, added))
        self.values = pad(self.values, (0, 0, 0, 0, 0, added))
        self.places = pad(self.places, (0, 0, 0, added), value=-1)
        if self.carried is not None:
            self.carried = pad(self.carried, (0, 0, 0, added))
        sequences = torch.repeat_interleave(torch.arange(len(have)), missing)
        self.owner = torch.cat([self.owner, send(sequences, self.owner.device)])
        wider = int((have + missing).max()) - self.table.shape[1]
        self.table = pad(self.table, (0, max(0, wider)), value=-1)
        start = missing.cumsum(0) - missing
        rank = torch.arange(added) - start[sequences]
        self.table[sequences, have[sequences] + rank] = torch.arange(total, total + added)

    def select(self, sequences: Tensor) -> None:
        """Keep only these sequences (int64 on the host), in this order."""
        table = self.table[sequences]
        blocks = (table >= 0).sum(1)
        kept = send(table[table >= 0], self.keys.device)
        self.keys, self.values, self.places = self.keys[kept], self.values[kept], self.places[kept]
        if self.carried is not None:
            self.carried = self.carried[kept]
        self.counts = self.counts[sequences]
        self.table, owner = _index(blocks)
        self.owner = send(owner, self.keys.device)

    def view(self, sequences: Tensor) -> View:
        """A padded look at these sequences (int64 on the host)."""
        blocks = -(-int(self.counts[sequences].max()) // self.size)
        return View(self, self.table[sequences, :blocks])

    def evict(self, sequences: Tensor, order: Tensor) -> None:
        """Drop entries, int64 [s, m] by their order within each of the sequences.

        The last entries move into the gaps, so that a sequence stays without holes.
        """
        m = order.shape[1]
        counts = self.counts[sequences] - m
        left = send(counts, order.device)[:, None]
        last = left + torch.arange(m, device=order.device)  # [s, m], behind the new end
        movers, target = (last, order) if m == 1 else _pair(last, order)
        blocks = -(-int(counts.max() + m) // self.size)
        table = send(self.table[sequences, :blocks], order.device)
        source, target, ends = (self._slots(table, each) for each in (movers, target, last))
        for pool in (self.keys, self.values):
            _flat(pool).index_copy_(0, target, _flat(pool)[source])
        for marks in (self.places, self.carried):
            if marks is not None:
                marks.view(-1).index_copy_(0, target, marks.view(-1)[source])
        self.places.view(-1).index_fill_(0, ends, -1)
        self.counts[sequences] = counts

    def _slots(self, table: Tensor, order: Tensor) -> Tensor:
        tiles = table.gather(1, order // self.size)
        return (tiles * self.size + order % self.size).flatten()


def _pair(last: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the `last` entries [s, m] move where, so that those in `order` [s, m] are gone.

    The k-th gap before the last takes the k-th of the last that stays, and there are as many of
    each; all others move to where they are.
    """
    gap = order < last[:, :1]
    stays = (last[:, :, None] != order[:, None]).all(-1)
    gaps = order.gather(1, (~gap).long().argsort(dim=1, stable=True))
    movers = last.gather(1, (~stays).long().argsort(dim=1, stable=True))
    paired = torch.arange(last.shape[1], device=last.device) < gap.sum(1, keepdim=True)
    return movers, torch.where(paired, gaps, movers)


class View:
    """Sequences side by side, padded to the longest: [s, n], n a multiple of the tile size."""

    def __init__(self, tiles: Tiles, table: Tensor) -> None:
        """table int64 [s, blocks] on the host, -1 where a sequence is shorter."""
        self._table = table
        device = tiles.keys.device
        self._index = send(table.clamp_min(0), device)
        self._absent = send(table < 0, device)
        held = tiles.places[self._index].masked_fill(self._absent[..., None], -1)
        self.places = held.flatten(1)  # int64 [s, n]

    def pick(self, pool: Tensor) -> Tensor:
        """Entries [T, tile, ...] of the pool as [s, n, ...]; padding holds anything."""
        return pool[self._index].flatten(1, 2)

    def rows(self, weights: Tensor) -> Tensor:
        """Rows [T, R, tile] over the pool as [s, R, n]; zero where there is no entry."""
        picked = weights[self._index].transpose(1, 2).flatten(2)  # [s, R, n]
        return picked.masked_fill((self.places < 0)[:, None], 0.0)

    def parts(self, parts: Tensor) -> Tensor:
        """One part a tile [T, ...] as [s, blocks, ...]; zero where a sequence is shorter."""
        shape = (*self._absent.shape, *(1 for _ in parts.shape[1:]))
        return parts[self._index].masked_fill(self._absent.view(shape), 0.0)

    def put(self, pool: Tensor, entries: Tensor) -> None:
        """Write entries [s, n, ...] back to the pool [T, tile, ...]."""
        self._put(pool, entries.unflatten(1, (self._table.shape[1], -1)))

    def put_rows(self, weights: Tensor, rows: Tensor) -> None:
        """Write rows [s, R, n] back to rows [T, R, tile] over the pool."""
        self._put(weights, rows.unflatten(2, (self._table.shape[1], -1)).transpose(1, 2))

    def _put(self, pool: Tensor, split: Tensor) -> None:
        """Write [s, blocks, ...] where there is a tile."""
        flat = self._table.flatten()
        present = (flat >= 0).nonzero()[:, 0]
        tiles, chosen = send(flat[present], pool.device), send(present, pool.device)
        pool.index_copy_(0, tiles, split.flatten(0, 1).index_select(0, chosen))


def _index(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Table [S, widest] and owner [T] of tiles that lie in the order of their sequences."""
    owner = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
    start = blocks.cumsum(0) - blocks
    place = torch.arange(int(blocks.max()))
    return torch.where(place < blocks[:, None], start[:, None] + place, -1), owner


def _tile(rows: Sequence[Tensor], blocks: Tensor, size: int, fill: int) -> Tensor:
    """Rows [heads, n] of each cell cut into the first `blocks` [cells * heads] tiles, [T, size]."""
    parts, start = [], 0
    for length, group in groupby(rows, lambda row: row.shape[1]):
        own = torch.cat(list(group))  # [sequences, length]
        need = blocks[start : start + len(own)]
        start += len(own)
        widest = int(need.max())
        room = widest * size
        padded = pad(own[:, :room], (0, max(0, room - length)), value=fill)
        tiles = padded.unflatten(1, (widest, size))
        if int(need.min()) == widest:
            parts.append(tiles.flatten(0, 1))
        else:
            place = (torch.arange(widest) < need[:, None]).flatten().nonzero()[:, 0]
            parts.append(tiles.flatten(0, 1).index_select(0, send(place, own.device)))
    return torch.cat(parts)


def send(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device; the copy is queued, not waited for."""
    return host.to(device, non_blocking=True)


def _flat(pool: Tensor) -> Tensor:
    return pool.view(-1, pool.shape[-1])


def _take(entries: Tensor, source: Tensor) -> Tensor:
    """Rows `source` [T, tile] of entries [1, heads, L, d] laid end to end: [T, tile, d]."""
    flat = entries.reshape(-1, entries.shape[-1])
    return flat.index_select(0, source.flatten()).view(*source.shape, -1)
