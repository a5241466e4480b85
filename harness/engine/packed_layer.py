"""Compact layers some of whose cells store most of their entries in another way.

The newest entries of such a cell lie in tiles as those of any other, the older ones in packed
groups. While a layer attends, all that is read of them lies in tiles too. On a CPU these tiles stay
for the next pass: that saves time, and bytes are those of the packed groups anyway. Must not know
policies or how the kept positions were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.cache import CompactLayer
from harness.engine.fetching import Fetched, chosen
from harness.engine.packed import Packed
from harness.engine.rotary import Rotary
from harness.engine.tiles import Tiles
from harness.engine.tiling import index
from methods.kernels import shared

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Plan:
    """Where entries are while they are read: sequence after sequence, packed ones first.

    table: of the tiles that it was made for. older, blocks int64 [S], on the host: packed entries
    that are read of each sequence, and its tiles. opened int64 [T * tile]: where each slot of the
    tiles goes. read, to: of each setting, which slots of its groups are read, int64 on the host
    (None: all), and where these go. tiles int64 [T]: where each of the tiles goes, for sequences
    without packed entries.
    """

    table: Tensor
    older: Tensor
    blocks: Tensor
    opened: Tensor
    read: list[Tensor | None]
    to: list[Tensor]
    tiles: Tensor


class PackedLayer(CompactLayer):
    """A compact layer with packed entries; `tiles` hold those in full precision.

    packed: of each setting the groups of its cells. Before new entries come, as long as a KV head
    of a cell holds `residual + step` entries in full precision, the oldest `step` are packed.
    fetched: notes what comes from the host.
    """

    def __init__(
        self,
        tiles: Tiles,
        heads: int,
        seen: int,
        rotary: Rotary | None,
        packed: Sequence[Packed],
    ) -> None:
        super().__init__(tiles, heads, seen, rotary)
        self.packed = [*packed]
        self.fetched = Fetched(len(tiles.table) // heads)
        self._known: _Plan | None = None
        self._opened: Tiles | None = None

    @property
    def counts(self) -> Tensor:
        """Entries of each sequence, packed or not, int64 on the host."""
        every = self.tiles.counts
        return sum((each.counts(len(every)) for each in self.packed), start=every)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that hold keys and values on the device."""
        return super().nbytes + sum(each.nbytes for each in self.packed)

    def sizes(self) -> Tensor:
        """Bytes that each sequence takes on the device, int64 [S] on the host."""
        whole = super().sizes()
        return sum((each.sizes(len(whole)) for each in self.packed), start=whole)

    def host_sizes(self) -> Tensor:
        """Bytes that each sequence takes on the host, int64 [S] on the host."""
        none = super().host_sizes()
        return sum((each.host_sizes(len(none)) for each in self.packed), start=none)

    def held(self) -> list[tuple[Tensor, Tensor]]:
        """Places of all entries, and the owner of each row."""
        device = self.tiles.keys.device
        return [*super().held(), *((p.places, shared(p.owner, device)) for p in self.packed)]

    def readable(self, query: Tensor, token: Tensor, scaling: float) -> Tiles:
        """All entries that these queries read, in full precision."""
        if not self.packed:
            return self.tiles
        if self._opened is not None:
            return self._opened
        opened = self._open(query, token, scaling)
        fetching = any(each.on_host is not None for each in self.packed)
        if self.tiles.in_torch() and not fetching and not self.holders:
            self._opened = opened
        return opened

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store new entries [S, q, d] of every sequence, where they are read as well."""
        super().append(keys, values)
        if self._opened is not None:
            self._opened.append(keys, values, self.token)

    def _forget(self) -> None:
        """What is read changes."""
        self._known, self._opened = None, None

    def _open(self, query: Tensor, token: Tensor, scaling: float) -> Tiles:
        self.tiles.close()
        device, own = self.tiles.keys.device, self.tiles
        columns = [each.keys.read(shared(each.rows, device)) for each in self.packed]
        plan = self._planned(query, columns, token, scaling)
        slots = int(plan.blocks.sum()) * own.size
        keys = own.keys.new_zeros(slots, own.keys.shape[-1])
        values = own.values.new_zeros(slots, own.values.shape[-1])
        places = own.places.new_full((slots,), -1)
        pools = keys, values, places
        for pool, each in zip(pools, (own.keys, own.values, own.places), strict=True):
            pool.index_copy_(0, plan.opened, each.flatten(0, 1))
        for packed, read, to, found in zip(self.packed, plan.read, plan.to, columns, strict=True):
            sent = None if read is None else shared(read, device)
            for pool, each in ((keys, found), (places, packed.places)):
                entries = each.flatten(0, 1)
                pool.index_copy_(0, to, entries if sent is None else entries[sent])
            values.index_copy_(0, to, _values(packed, read, sent))
        keys, values, places = (pool.unflatten(0, (-1, own.size)) for pool in pools)
        return Tiles(keys, values, places, own.counts + plan.older, plan.blocks)

    def _planned(
        self, query: Tensor, keys: Sequence[Tensor], token: Tensor, scaling: float
    ) -> _Plan:
        """What is read of packed entries with these keys, and where it goes.

        Made anew when the tiles or the packed entries are others, or the queries decide.
        """
        wanted: list[Tensor | None] = []
        for packed, own in zip(self.packed, keys, strict=True):
            if packed.on_host is None:
                wanted.append(None)
                continue
            read = chosen(packed, own, self.tiles, query, token, scaling)
            self.fetched.note(packed, read)
            wanted.append(read)
        known = self._known
        fresh = known is not None and known.table is self.tiles.table
        if known is None or not fresh or any(each is not None for each in wanted):
            self._known = known = _plan(self.tiles, self.packed, wanted)
        return known

    def weights_of_tiles(self, weights: Tensor) -> Tensor:
        """Weights of what is readable as those of the tiles, for cells without packed entries."""
        same = not self.packed or len(weights) == len(self.tiles.table)  # those of sequences are
        if same:
            return weights
        assert self._known is not None  # they are of what was readable
        return weights.index_select(0, self._known.tiles)

    def settle(self) -> None:
        """Pack the oldest entries of cells that hold enough of them."""
        for i, packed in enumerate(self.packed):
            if packed.on_host is not None:
                self.fetched.begin(packed.cells)
            least = packed.setting.residual + packed.setting.step
            own = packed.able()
            while len(due := own[self.tiles.counts[own] >= least]):
                packed = self._with_oldest(packed, due)
                self.packed[i] = packed
                self._forget()

    def _with_oldest(self, packed: Packed, due: Tensor) -> Packed:
        """With the oldest group of entries of these sequences, taken out of the tiles."""
        step, device = packed.setting.step, self.tiles.keys.device
        view = self.tiles.view(due)
        age = view.places.masked_fill(view.places < 0, _NEVER)
        order = age.argsort(-1)[:, :step]
        slots = shared(self.tiles.starts[due], device)[:, None] + order
        pools = self.tiles.keys, self.tiles.values, self.tiles.places
        keys, values, places = (pool.flatten(0, 1)[slots] for pool in pools)
        self.tiles.evict(due, order)
        return packed.extended(keys, values, places, due, torch.full((len(due),), step))

    def changing(self) -> set[int]:
        """Cells for which the host decides something at every step."""
        return super().changing().union(*(each.cells for each in self.packed))

    def copy(self) -> PackedLayer:
        """The same entries once more, of which nobody evicts yet and nothing was fetched."""
        own = super().copy()
        assert isinstance(own, PackedLayer)
        own.packed = [*self.packed]
        own.fetched = Fetched(len(self.tiles.table) // self.heads)
        own._forget()
        return own

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only these cells, int64 on the host."""
        super().batch_select_indices(rows)
        place = {cell: row for row, cell in enumerate(rows.tolist())}
        left = [each for each in self.packed if any(cell in place for cell in each.cells)]
        self.packed = [each.select(place) for each in left]
        self.fetched = self.fetched.select(rows.tolist())
        self._forget()

    def recount(self, counted: tuple[int, Tensor]) -> None:
        """Let the host count from there."""
        super().recount(counted)
        self._forget()


def _values(packed: Packed, read: Tensor | None, sent: Tensor | None) -> Tensor:
    """Values [k, dv] of the slots that are read, `sent` on the device; None: of all slots."""
    if packed.on_host is not None:
        every = torch.arange(packed.places.numel())
        return packed.on_host.fetch(every if read is None else read)
    entries = packed.values.read(shared(packed.rows, packed.places.device)).flatten(0, 1)
    return entries if sent is None else entries[sent]


def _plan(tiles: Tiles, packed: Sequence[Packed], wanted: Sequence[Tensor | None]) -> _Plan:
    """wanted: bool [P, step] on the host, the entries of each setting that are read; None: all."""
    sequences, size, device = len(tiles.table), tiles.size, tiles.keys.device
    read = [_present(each, own) for each, own in zip(packed, wanted, strict=True)]
    older = torch.zeros(sequences, dtype=torch.long)
    for each, own in zip(packed, read, strict=True):
        older.index_add_(0, each.owner, own.sum(1))
    have = (tiles.table >= 0).sum(1)
    blocks = have + -(-older // size)
    table, _ = index(blocks)
    starts = table[:, 0] * size
    owner = torch.repeat_interleave(torch.arange(sequences), have)
    first = starts + older - tiles.starts  # how far the slots of a sequence move
    opened = torch.arange(len(owner) * size).view(-1, size) + first[owner][:, None]
    moved = [
        starts[each.owner][:, None] + _ranks(each.owner, own)
        for each, own in zip(packed, read, strict=True)
    ]
    return _Plan(
        tiles.table,
        older,
        blocks,
        shared(opened.flatten(), device),
        [None if own.all() else own.flatten().nonzero()[:, 0] for own in read],
        [shared(to[own], device) for to, own in zip(moved, read, strict=True)],
        shared(opened[:, 0] // size, device),
    )


def _present(packed: Packed, wanted: Tensor | None) -> Tensor:
    """Which slots of the groups are read, bool [P, step] on the host."""
    if wanted is not None:
        return wanted
    return torch.arange(packed.setting.step) < packed.filled[:, None]


def _ranks(owner: Tensor, read: Tensor) -> Tensor:
    """How many entries of its sequence are read before each slot, int64 [P, step]."""
    counts = read.sum(1)
    order = owner.argsort(stable=True)
    before = counts[order].cumsum(0) - counts[order]
    of = owner[order]
    starts = torch.ones_like(of, dtype=torch.bool)
    starts[1:] = of[1:] != of[:-1]
    offset = before[starts][starts.cumsum(0) - 1]
    first = torch.empty_like(before)
    first[order] = before - offset
    return first[:, None] + read.cumsum(1) - read.long()
