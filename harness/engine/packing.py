"""Packs the older entries of cells as a prompt is compacted, each cell as its setting says.

Must not know models, policies or what is done with packed entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.engine.columns import ByChannel, ByCodes, ByToken, Column, OnHost, Whole
from harness.engine.packed import Packed, rows_of
from harness.engine.reindexed import sequences_of
from harness.engine.tiling import tile
from harness.settings.caches import PQKeys, Quantized, Storage
from methods.kernels import Unturning, gather_entries, shared


class _Source(NamedTuple):
    """Keys and values [1, heads, L, d] of a prompt, and which cells take rotary positions off."""

    keys: Tensor
    values: Tensor
    unturning: Unturning | None
    unturned: Sequence[int]

    def taken(self, where: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [P, n, d] of places [P, n] of the sequences owner [P] on the host."""
        heads, device, turns = self.keys.shape[1], self.keys.device, self.unturning
        if turns is not None:
            own = torch.isin(owner // heads, torch.tensor(self.unturned))
            turns = turns._replace(turned=shared(own, device))
        return gather_entries(self.keys, self.values, where, shared(owner, device), turns)


def gather(
    keys: Tensor,
    values: Tensor,
    places: Sequence[Tensor],
    counts: Sequence[Sequence[int]],
    caches: Mapping[Storage, Sequence[int]],
    unturning: Unturning | None = None,
    unturned: Sequence[int] = (),
) -> tuple[list[Packed], list[Tensor], list[list[int]]]:
    """Pack all but the newest entries of cells, and say what is left to be gathered into tiles.

    keys, values [1, heads, L, d]; places int64 [heads, n] of each cell, ascending, of which the
    first counts[head] of each row are used. caches: which cells are of each setting. unturning,
    unturned: as of `Tiles.gather`. Returns the packed entries, and places and counts of the rest.
    """
    heads = keys.shape[1]
    source = _Source(keys, values, unturning, unturned)
    rest, left, found = [*places], [[*each] for each in counts], []
    for setting, cells in caches.items():
        entries = torch.tensor([counts[cell] for cell in cells])  # [C, heads]
        older = (entries - setting.residual).clamp_min(0)
        for cell, own in zip(cells, older, strict=True):
            rest[cell] = _behind(places[cell], own)
            left[cell] = (torch.tensor(counts[cell]) - own).tolist()
        every = [places[cell] for cell in cells]
        where, owner, filled = _groups(every, older, cells, setting.step)
        taken = source.taken(where, owner)
        coded: Column
        if isinstance(setting, PQKeys):
            coded = _coded(setting, taken[0], owner, source, every, entries, cells)
        else:
            coded = _plain(setting, taken[0], where)
        columns = coded, _values(setting, taken[1])
        found.append(Packed(setting, tuple(cells), heads, *columns, where, owner, filled))
    return found, rest, left


def _groups(
    places: Sequence[Tensor], counts: Tensor, cells: Sequence[int], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first counts [C, heads] of the places of each cell in groups: places [P, size], and the
    sequence and the entries of each group on the host.
    """
    groups = -(-counts // size).flatten()
    chosen = [_before(own, count) for own, count in zip(places, counts, strict=True)]
    where = tile(chosen, groups, size, -1)
    owner = torch.repeat_interleave(sequences_of(cells, counts.shape[1]), groups)
    return where, owner, _filled(counts.flatten(), groups, size)


def _plain(setting: Storage, keys: Tensor, where: Tensor) -> Column:
    """Keys that are stored without centroids."""
    if isinstance(setting, Quantized):
        return ByChannel.of(keys, where >= 0, setting.bits)
    return Whole(keys)


def _values(setting: Storage, values: Tensor) -> Column:
    if isinstance(setting, Quantized):
        return ByToken.of(values, setting.group, setting.bits)
    return Whole(values) if setting.share is None else OnHost.of(values)


def _coded(
    setting: PQKeys,
    keys: Tensor,
    owner: Tensor,
    source: _Source,
    places: Sequence[Tensor],
    entries: Tensor,
    cells: Sequence[int],
) -> ByCodes:
    """Keys by centroids of all that their head keeps, the newest entries included: those leave
    full precision one day.
    """
    heads, step = entries.shape[1], setting.step
    blocks = torch.full((entries.numel(),), -(-int(entries.max()) // step))
    owners = torch.repeat_interleave(sequences_of(cells, heads), blocks)
    every, _ = source.taken(tile(places, blocks, step, -1), owners)
    every = every.view(len(blocks), -1, every.shape[-1])
    rows = shared(rows_of(owner, tuple(cells), heads), keys.device)
    return ByCodes.of(keys, rows, every, entries.flatten(), setting.parts, setting.bits)


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
