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
    each; all others move to where they are.
    """
    gap = order < last[:, :1]
    stays = (last[:, :, None] != order[:, None]).all(-1)
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
