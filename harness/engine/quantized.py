"""Compact layers some of whose cells hold most of their entries in few bits.

The newest entries of such a cell lie in tiles as those of any other, the older ones in packed
groups; for the length of one layer's attention all of them are tiles. Must not know policies or how
the kept positions were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.engine.cache import CompactLayer
from harness.engine.packed import Packed
from harness.engine.reindexed import sequences_of
from harness.engine.rotary import Rotary
from harness.engine.tiles import Tiles
from harness.engine.tiling import index, tile
from harness.settings.caches import Quantized
from methods.kernels import Unturning, gather_entries, shared

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Plan:
    """Where entries are while they are read: sequence after sequence, packed ones first.

    table: of the tiles that it was made for. blocks int64 [S], on the host: tiles of each sequence.
    opened int64 [T * tile]: where each slot of the tiles goes. packed: of each setting, which slots
    of its groups hold entries (None: all do), and where these go. tiles int64 [T]: where each of
    the tiles goes, for sequences without packed entries.
    """

    table: Tensor
    blocks: Tensor
    opened: Tensor
    packed: list[tuple[Tensor | None, Tensor]]
    tiles: Tensor


class QuantizedLayer(CompactLayer):
    """A compact layer with packed entries; `tiles` hold those in full precision.

    packed: of each setting the groups of its cells. Before new entries come, as long as a KV head
    of a cell holds `residual + group` entries in full precision, the oldest `group` are packed.
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
        self._known: _Plan | None = None

    @property
    def counts(self) -> Tensor:
        """Entries of each sequence, packed or not, int64 on the host."""
        every = self.tiles.counts
        return sum((each.counts(len(every)) for each in self.packed), start=every)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that hold keys and values."""
        return super().nbytes + sum(each.nbytes for each in self.packed)

    def sizes(self) -> Tensor:
        """Bytes that the entries of each sequence take, int64 [S] on the host."""
        whole = super().sizes()
        return sum((each.sizes(len(whole)) for each in self.packed), start=whole)

    def held(self) -> list[tuple[Tensor, Tensor]]:
        """Places of all entries, and the owner of each row."""
        device = self.tiles.keys.device
        return [*super().held(), *((p.places, shared(p.owner, device)) for p in self.packed)]

    def readable(self) -> Tiles:
        """All entries in full precision."""
        if not self.packed:
            return self.tiles
        self.tiles.close()
        plan, own = self._plan(), self.tiles
        slots = int(plan.blocks.sum()) * own.size
        keys = own.keys.new_zeros(slots, own.keys.shape[-1])
        values = own.values.new_zeros(slots, own.values.shape[-1])
        places = own.places.new_full((slots,), -1)
        pools = keys, values, places
        for pool, each in zip(pools, (own.keys, own.values, own.places), strict=True):
            pool.index_copy_(0, plan.opened, each.flatten(0, 1))
        for packed, (present, to) in zip(self.packed, plan.packed, strict=True):
            for pool, each in zip(pools, (*packed.unpacked(), packed.places), strict=True):
                entries = each.flatten(0, 1)
                pool.index_copy_(0, to, entries if present is None else entries[present])
        keys, values, places = (pool.unflatten(0, (-1, own.size)) for pool in pools)
        return Tiles(keys, values, places, self.counts, plan.blocks)

    def weights_of_tiles(self, weights: Tensor) -> Tensor:
        """Weights of what is readable as those of the tiles, for cells without packed entries."""
        same = not self.packed or len(weights) == len(self.tiles.table)  # those of sequences are
        return weights if same else weights.index_select(0, self._plan().tiles)

    def settle(self) -> None:
        """Pack the oldest entries of cells that hold enough of them."""
        for i, packed in enumerate(self.packed):
            least = packed.setting.residual + packed.setting.group
            own = sequences_of(packed.cells, self.heads)
            while len(due := own[self.tiles.counts[own] >= least]):
                packed = packed.joined(self._oldest(packed, due))
                self.packed[i] = packed
                self._known = None

    def _oldest(self, packed: Packed, due: Tensor) -> Packed:
        """The oldest group of entries of these sequences, taken out of the tiles."""
        group, device = packed.setting.group, self.tiles.keys.device
        view = self.tiles.view(due)
        age = view.places.masked_fill(view.places < 0, _NEVER)
        order = age.argsort(-1)[:, :group]
        slots = shared(self.tiles.starts[due], device)[:, None] + order
        pools = self.tiles.keys, self.tiles.values, self.tiles.places
        keys, values, places = (pool.flatten(0, 1)[slots] for pool in pools)
        self.tiles.evict(due, order)
        filled = torch.full((len(due),), group)
        return Packed.of(packed.setting, packed.cells, keys, values, places, due, filled)

    def _plan(self) -> _Plan:
        """Made anew when the tiles or the packed entries are others."""
        if self._known is None or self._known.table is not self.tiles.table:
            self._known = _plan(self.tiles, self.packed)
        return self._known

    def changing(self) -> set[int]:
        """Cells for which the host decides something at every step."""
        return super().changing().union(*(each.cells for each in self.packed))

    def copy(self) -> QuantizedLayer:
        """The same entries once more, of which nobody evicts yet."""
        own = super().copy()
        assert isinstance(own, QuantizedLayer)
        own.packed = [*self.packed]
        return own

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only these cells, int64 on the host."""
        super().batch_select_indices(rows)
        place = {cell: row for row, cell in enumerate(rows.tolist())}
        left = [each for each in self.packed if any(cell in place for cell in each.cells)]
        self.packed = [each.select(place, self.heads) for each in left]
        self._known = None


def _plan(tiles: Tiles, packed: Sequence[Packed]) -> _Plan:
    sequences, size, device = len(tiles.table), tiles.size, tiles.keys.device
    own = [each.counts(sequences) for each in packed]
    older = sum(own, start=torch.zeros(sequences, dtype=torch.long))
    have = (tiles.table >= 0).sum(1)
    blocks = have + -(-older // size)
    table, _ = index(blocks)
    starts = table[:, 0] * size
    owner = torch.repeat_interleave(torch.arange(sequences), have)
    first = starts + older - tiles.starts  # how far the slots of a sequence move
    opened = torch.arange(len(owner) * size).view(-1, size) + first[owner][:, None]
    moved = [_entries(each, starts, sequences) for each in packed]
    return _Plan(
        tiles.table,
        blocks,
        shared(opened.flatten(), device),
        [
            (None if present is None else shared(present, device), shared(to, device))
            for present, to in moved
        ],
        shared(opened[:, 0] // size, device),
    )


def _entries(packed: Packed, starts: Tensor, sequences: int) -> tuple[Tensor | None, Tensor]:
    """Which slots of the groups hold entries (None: all), and where each of these goes."""
    place = torch.arange(packed.setting.group)
    to = (starts[packed.owner] + packed.ranks(sequences))[:, None] + place
    present = place < packed.filled[:, None]
    if bool(present.all()):
        return None, to.flatten()
    return present.flatten().nonzero()[:, 0], to[present]


def gather(
    keys: Tensor,
    values: Tensor,
    places: Sequence[Tensor],
    counts: Sequence[Sequence[int]],
    caches: Mapping[Quantized, Sequence[int]],
    unturning: Unturning | None = None,
    unturned: Sequence[int] = (),
) -> tuple[list[Packed], list[Tensor], list[list[int]]]:
    """Pack all but the newest entries of cells, and say what is left to be gathered into tiles.

    keys, values [1, heads, L, d]; places int64 [heads, n] of each cell, ascending, of which the
    first counts[head] of each row are used. caches: which cells are of each setting. unturning,
    unturned: as of `Tiles.gather`. Returns the packed entries, and places and counts of the rest.
    """
    heads, device = keys.shape[1], keys.device
    rest, left, found = [*places], [[*each] for each in counts], []
    for setting, cells in caches.items():
        entries = torch.tensor([counts[cell] for cell in cells])  # [C, heads]
        older = (entries - setting.residual).clamp_min(0)
        for cell, own in zip(cells, older, strict=True):
            rest[cell] = _behind(places[cell], own)
            left[cell] = (torch.tensor(counts[cell]) - own).tolist()
        groups = -(-older // setting.group).flatten()
        chosen = [_before(places[cell], own) for cell, own in zip(cells, older, strict=True)]
        where = tile(chosen, groups, setting.group, -1)
        owner = torch.repeat_interleave(sequences_of(cells, heads), groups)
        turns = unturning
        if turns is not None:
            turned = torch.isin(owner // heads, torch.tensor(unturned))
            turns = turns._replace(turned=shared(turned, device))
        taken = gather_entries(keys, values, where, shared(owner, device), turns)
        filled = _filled(older.flatten(), groups, setting.group)
        found.append(Packed.of(setting, cells, *taken, where, owner, filled))
    return found, rest, left


def _before(places: Tensor, count: Tensor) -> Tensor:
    """The first `count` [heads] of places [heads, n], with -1 behind them, as wide as needed."""
    own = places[:, : int(count.max())]
    limit = shared(count, places.device)[:, None]
    return own.masked_fill(torch.arange(own.shape[1], device=places.device) >= limit, -1)


def _behind(places: Tensor, count: Tensor) -> Tensor:
    """Places [heads, n] behind the first `count` [heads], with -1 at the ends."""
    first, last = int(count.min()), int(count.max())
    if first == last:
        return places[:, first:]
    longer = pad(places, (0, last), value=-1)
    at = count[:, None] + torch.arange(places.shape[1] - first)
    return longer.gather(1, shared(at, places.device))


def _filled(entries: Tensor, groups: Tensor, size: int) -> Tensor:
    """Entries of each group of sequences that have so many of both."""
    first = torch.repeat_interleave(groups.cumsum(0) - groups, groups)
    place = torch.arange(len(first)) - first
    return (torch.repeat_interleave(entries, groups) - place * size).clamp_max(size)
