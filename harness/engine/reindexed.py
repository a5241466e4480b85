"""Rotary positions by the place in the cache, for cells whose keys are stored without.

Must not know models, or why a cell re-indexes its positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.engine.rotary import Rotary
from harness.engine.tiles import Tiles
from harness.engine.views import View
from methods.kernels import Turning, shared


def sequences_of(cells: Sequence[int], heads: int) -> Tensor:
    """Sequences of these cells, int64 [cells * heads] on the host."""
    return (torch.tensor(cells)[:, None] * heads + torch.arange(heads)).flatten()


def turns_of(
    tiles: Tiles, heads: int, cells: Sequence[int], rotary: Rotary | None, seen: int
) -> Turning:
    """What the keys of re-indexed cells are turned by: their place in the cache.

    seen: tokens so far.
    """
    assert rotary is not None
    device = tiles.keys.device
    counts = tiles.counts.view(-1, heads)[cells]  # [C, Hkv]
    longest = counts.amax(1).tolist()
    lengths = sorted(set(longest)) if rotary.by_length else [max(longest)]
    tables = [rotary.table(length, device) for length in lengths]
    ends = torch.tensor([0, *(len(cos) for cos, _ in tables)]).cumsum(0).tolist()
    start = torch.full((tiles.counts.shape[0] // heads,), -1)
    for cell, length in zip(cells, longest, strict=True):
        start[cell] = ends[lengths.index(length) if rotary.by_length else 0]
    view = tiles.view(sequences_of(cells, heads))
    ranks = torch.zeros_like(tiles.places, dtype=torch.int32)
    view.put(ranks, _ranks(view, seen).int())
    cosines, sines = (torch.cat(each) for each in zip(*tables, strict=True))
    starts = shared(start.repeat_interleave(heads), device)
    return Turning(cosines, sines, starts, ranks, rotary.interleaved)


def _ranks(some: View, seen: int) -> Tensor:
    """Place of each entry in its sequence by age, int64 [s, n]; 0 where there is none."""
    absent = some.places < 0
    order = some.places.masked_fill(absent, seen).argsort(-1).argsort(-1)
    return order.masked_fill(absent, 0)
