"""How entries are laid out in tiles, and which move when some go. Must not know what they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.kernels import shared


def pair(last: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the `last` entries [s, m] move where, so that those in `order` [s, m] are gone.

    The k-th gap before the last takes the k-th of the last that stays, and there are as many of
    each; all others move to where they are. Both are -1 behind those of a sequence that loses fewer
    than m, and so are its movers and targets.
    """
    gap = (order >= 0) & (order < last[:, :1])
    stays = (last >= 0) & (last[:, :, None] != order[:, None]).all(-1)
    gaps = order.gather(1, (~gap).long().argsort(dim=1, stable=True))
    movers = last.gather(1, (~stays).long().argsort(dim=1, stable=True))
    paired = torch.arange(last.shape[1], device=last.device) < gap.sum(1, keepdim=True)
    return movers, torch.where(paired, gaps, movers)


def index(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Table [S, widest] and owner [T] of tiles that lie in the order of their sequences."""
    owner = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
    start = blocks.cumsum(0) - blocks
    place = torch.arange(int(blocks.max()))
    return torch.where(place < blocks[:, None], start[:, None] + place, -1), owner


def both(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The tiles of two tables [S, n] that a sequence has in both, its first ones, in each."""
    width = min(before.shape[1], after.shape[1])
    before, after = before[:, :width], after[:, :width]
    held = (before >= 0) & (after >= 0)
    return before[held], after[held]


def tile_marks(
    marks: Sequence[Tensor | None], places: Sequence[Tensor], blocks: Tensor, size: int
) -> Tensor | None:
    """`tile` of float32 [heads, n] for each cell, 0 where it has none; None if all have none."""
    if all(each is None for each in marks):
        return None
    widest = max(own.shape[1] for own in places)
    nothing = places[0].new_zeros(len(places[0]), widest, dtype=torch.float32)
    floats = [
        nothing[:, : own.shape[1]] if kept is None else kept
        for own, kept in zip(places, marks, strict=True)
    ]
    return tile(floats, blocks, size, 0)


def tile(rows: Sequence[Tensor], blocks: Tensor, size: int, fill: int) -> Tensor:
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
            parts.append(tiles.flatten(0, 1).index_select(0, shared(place, own.device)))
    return torch.cat(parts)
