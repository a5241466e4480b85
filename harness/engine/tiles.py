"""Entries of many sequences in one pool of fixed-size tiles, none longer than it needs to be.

A sequence is what one KV head of one cell keeps. Each has tiles of its own and fills them one after
the other, so sequences of any lengths share a pool and at most one tile of each is partly empty.
Which tile belongs to whom is known on the host, so no result of the device is waited for, and on
the device, so nothing is sent to it while no tile is added. It must not know models, policies or
cells.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.engine.tiling import both, index, pair, tile, tile_marks
from harness.engine.views import Look, View, joined
from methods.kernels import (
    Run,
    Unturning,
    append_entries,
    by_triton,
    find_runs,
    gather_entries,
    move_entries,
    send,
    shared,
)

SMALL, LARGE = 16, 64  # entries a tile: small ones waste little, large ones multiply faster
ROOM = 64  # entries that every sequence has room for when the pool is copied to add tiles
SPARE = 2  # a sequence with more than so many times the tiles it needs then gives the rest back
TILES = 5  # as many are multiplied by themselves in the time of a dense batch


class Tiles:
    """A pool of T tiles for S sequences, in whose order they lie.

    keys [T, tile, d], values [T, tile, dv]; places int64 [T, tile], the index in the sequence of
    the token of each entry, -1 where there is none; carried float32 [T, tile] or None. owner int64
    [T]: the sequence of a tile. On the host: counts int64 [S]; table int64 [S, blocks], the tile of
    each block of a sequence, -1 behind its last. The same on the device, int32: device_counts,
    device_table; starts int64 [S], on the host: the first slot of each sequence.
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
        """blocks int64 [S]: tiles of each sequence."""
        self.keys, self.values, self.places, self.carried = keys, values, places, carried
        self.counts = counts
        self.device_counts = send(counts.int(), keys.device)
        self._arrange(blocks)

    def _arrange(self, blocks: Tensor) -> None:
        """Give each sequence so many tiles."""
        self.table, owner = index(blocks)
        device = self.keys.device
        self.owner, self.device_table = shared(owner, device), shared(self.table.int(), device)
        self.starts = self.table[:, 0] * self.size
        self._looks: dict[tuple[object, ...], Look] = {}
        self._changed()

    def _changed(self) -> None:
        """Forget what was made from the counts."""
        self._gaps: tuple[Tensor, Tensor] | None = None  # sequences, and the slots of their gaps
        self._free = 0  # entries that every sequence has room for, at least
        self._runs: list[Run] | None = None

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
        unturning: Unturning | None = None,
        unturned: Sequence[int] = (),
    ) -> Tiles:
        """Copy prompt entries into tiles.

        keys, values [1, heads, L, d]; for each cell places int64 [heads, n] of which the first
        counts[head] of each row are used, and carried float32 [heads, n] or None. unturning: take
        off the rotary positions of the keys of these cells.
        """
        heads = keys.shape[1]
        longest = max(max(each) for each in counts)
        size = SMALL if longest < 32 * SMALL else LARGE
        entries = torch.tensor([list(each) for each in counts])  # [cells, heads]
        blocks = entries // size + 1  # room for the next token in every sequence
        blocks = blocks.flatten()
        where = tile(places, blocks, size, -1)
        owner = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
        if unturning is not None:
            own = torch.isin(owner // heads, torch.tensor(unturned))
            unturning = unturning._replace(turned=shared(own, keys.device))
        remembered = tile_marks(carried, places, blocks, size)
        taken = gather_entries(keys, values, where, shared(owner, keys.device), unturning)
        return cls(*taken, where, entries.flatten(), blocks, remembered)

    def copy(self) -> Tiles:
        """The same entries once more; what becomes of one changes nothing of the other."""
        self.close()
        own = copy.copy(self)
        for name in ("keys", "values", "places", "counts", "device_counts"):
            setattr(own, name, getattr(self, name).clone())
        own.carried = None if self.carried is None else self.carried.clone()
        own._changed()
        return own

    def rewrite(self, sequences: Tensor, keys: Tensor, values: Tensor) -> None:
        """Give the first entries of these sequences (int64 [s] on the host) other keys [s, n, d]
        and values [s, n, dv]; of a shorter one, as many as it has.
        """
        place = torch.arange(keys.shape[1])
        present = place < self.counts[sequences, None]  # [s, n]
        slots = shared((self.starts[sequences, None] + place)[present], keys.device)
        present = shared(present, keys.device)
        self.keys.flatten(0, 1).index_copy_(0, slots, keys[present].to(self.keys.dtype))
        self.values.flatten(0, 1).index_copy_(0, slots, values[present].to(self.values.dtype))

    def append(self, keys: Tensor, values: Tensor, first: Tensor) -> None:
        """Add entries [S, q, d] of tokens first..first + q - 1 to every sequence; first int64 [1].

        first is on the device.
        """
        new = keys.shape[1]
        self.reserve(new)
        slot = None
        if new == 1 and self.in_torch():
            slot = self.starts + self.counts
            if self._gaps is not None:
                slot.index_copy_(0, *self._gaps)
                self._gaps = None
        self.close()
        append_entries(
            self.keys,
            self.values,
            self.places,
            self.carried,
            self.device_table,
            self.device_counts,
            keys,
            values,
            first,
            slot,
        )
        self.device_counts += new
        self.counts += new
        self._free -= new
        for run in self._runs or ():
            run.longest += new

    def reserve(self, new: int) -> None:
        """Give tiles to the sequences that need them for `new` more entries, and take tiles from
        those that have become much shorter. Seldom and for all, since the pool is copied.
        """
        if new <= self._free:
            return
        have = (self.table >= 0).sum(1)
        self._free = int((have * self.size - self.counts).min())
        if new <= self._free:
            return
        self.close()
        before = self.table
        wanted = -(-(self.counts + max(new, ROOM)) // self.size)
        self._arrange(torch.where(have > SPARE * wanted, wanted, torch.maximum(have, wanted)))
        stay, moved = both(before, self.table)
        target = shared(moved, self.keys.device)
        every = len(stay) == len(self.keys)  # then they lie in order
        source = None if every else shared(stay, self.keys.device)

        def copied(pool: Tensor, fill: int) -> Tensor:
            other = pool.new_full((len(self.owner), *pool.shape[1:]), fill)
            return other.index_copy_(0, target, pool if source is None else pool[source])

        self.keys, self.values = copied(self.keys, 0), copied(self.values, 0)
        self.places = copied(self.places, -1)
        if self.carried is not None:
            self.carried = copied(self.carried, 0)

    def recount(self, counts: Tensor) -> None:
        """Let the host take counts int64 [S] for those of the device."""
        self.counts = counts
        self._changed()

    def select(self, sequences: Tensor) -> None:
        """Keep only these sequences (int64 on the host), in this order."""
        self.close()
        table = self.table[sequences]
        blocks = (table >= 0).sum(1)
        kept = shared(table[table >= 0], self.keys.device)
        self.keys, self.values, self.places = self.keys[kept], self.values[kept], self.places[kept]
        if self.carried is not None:
            self.carried = self.carried[kept]
        self.counts = self.counts[sequences]
        self.device_counts = self.device_counts[shared(sequences, self.keys.device)]
        self._arrange(blocks)

    def view(self, sequences: Tensor) -> View:
        """A padded look at these sequences (int64 on the host)."""
        return self.view_all([self], [sequences])

    @staticmethod
    def view_all(pools: Sequence[Tiles], parts: Sequence[Tensor]) -> View:
        """The same of pools of one tile size: each part in one pool after the other, as of Look."""
        first = pools[0]
        for each in pools:
            each.close()
        tables = [each.table for each in pools]
        key = (*(part.numpy().tobytes() for part in parts), *map(id, tables))
        if key not in first._looks:
            first._looks[key] = Look(tables, parts, first.keys.device)
        look = first._looks[key]
        counts = joined([each.counts for each in pools])[look.own]
        look.reach(-(-int(counts.max()) // first.size))
        return View(joined([each.places for each in pools]), look, counts)

    def evict(self, sequences: Tensor, order: Tensor) -> None:
        """Drop entries, int64 [s, m] by their order within each of the sequences.

        The last entries move into the gaps, so that a sequence stays without holes; a single gap on
        a CPU waits until the next entry fills it, or until something else needs it closed.
        """
        self.close()
        m = order.shape[1]
        own = shared(sequences, order.device)
        if m == 1 and self.in_torch():
            slots = self.starts.index_select(0, sequences) + order[:, 0]
            self.places.view(-1).index_fill_(0, slots, -1)
            self._gaps = sequences, slots
        else:
            last = self.device_counts[own][:, None] - torch.arange(m, 0, -1, device=order.device)
            movers, target = (last, order) if m == 1 else pair(last, order)
            self._move(own, movers, target, last)
        self._lower(sequences, torch.full_like(sequences, m), own, torch.full_like(own, m))

    def evict_some(self, sequences: Tensor, order: Tensor, numbers: Tensor) -> None:
        """The same where each sequence loses its own number, one or more, int64 [s] on the host;
        order [s, m] is -1 behind them.
        """
        self.close()
        own, drops = shared(sequences, order.device), shared(numbers, order.device)[:, None]
        end, place = self.device_counts[own][:, None], torch.arange(order.shape[1]).to(order.device)
        last = torch.where(place < drops, end - drops + place, -1)
        # In place of -1 the last entry moves to where it is; it is among those that go anyway.
        moves = [torch.where(each < 0, end - 1, each) for each in (*pair(last, order), last)]
        self._move(own, *moves)
        self._lower(sequences, numbers, own, drops[:, 0])

    def _lower(self, sequences: Tensor, numbers: Tensor, own: Tensor, drops: Tensor) -> None:
        """Count so many entries less of these sequences: int64 [s], on the host and the device."""
        self.device_counts.index_add_(0, own, drops.int(), alpha=-1)
        self.counts.index_add_(0, sequences, numbers, alpha=-1)
        if self._runs:
            counts = self.counts.tolist()
            for run in self._runs:
                run.measure(counts)

    def close(self) -> None:
        """Move last entries into the gaps that wait for the next ones."""
        if self._gaps is not None:
            sequences, slots = self._gaps
            self._gaps = None
            last = self.counts[sequences][:, None]
            self._move(sequences, last, (slots - self.starts[sequences])[:, None], last)

    def _move(self, sequences: Tensor, movers: Tensor, targets: Tensor, ends: Tensor) -> None:
        pools = self.keys, self.values, self.places, self.carried
        move_entries(*pools, self.device_table, sequences, movers, targets, ends)

    def in_torch(self) -> bool:
        """Whether it is plain torch on the CPU that writes to the pool."""
        return not self.keys.is_cuda and not by_triton(self.keys, self.values)

    def runs(self) -> list[Run] | None:
        """Dense batches for plain torch; None where tiles are faster by themselves."""
        if not self.in_torch():
            return None
        self.close()
        if self._runs is None:
            pools = self.keys, self.values, self.places
            blocks = (self.table >= 0).sum(1)
            self._runs = find_runs(*pools, self.counts.tolist(), blocks.tolist())
        few = len(self._runs) * TILES < len(self.owner)
        return self._runs if few else None
