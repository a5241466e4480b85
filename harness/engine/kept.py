"""What the cells of a prompt keep, in numbers: entries, images, bytes, scores.

Must not know how cells are compacted or decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from harness.engine.cache import CompactLayer
from harness.engine.caches import tensors
from harness.engine.cells import Cell
from harness.engine.layout import Layout
from harness.engine.prefill import Prefill
from methods import Selection


@dataclass(frozen=True)
class Kept:
    """Figures of one cell, means over compressed layers and KV heads; bytes over all layers.

    shares float32 [L]: of those layers and heads, how many kept each token; None where not asked.
    finite: whether the scores that decided what was kept are numbers.
    """

    tokens: float
    image: float
    cache_bytes: int
    full_cache_bytes: int
    host_bytes: int
    window: int | None
    adaptive: float | None
    fallback: str | None
    shares: Tensor | None = None
    finite: bool = True


class Counted:
    """Sums over the compressed layers of what each cell keeps of a prompt; trace: asks for shares.

    modality [L] of the evictable tokens.
    """

    def __init__(self, cells: int, modality: Tensor, trace: bool) -> None:
        self.cells, self.modality = cells, modality
        # Of a layer it may be no whole number.
        self.tokens = torch.zeros(cells, dtype=torch.float64)
        self.images = torch.zeros(cells, device=modality.device)
        self.stored, self.away = (torch.zeros(cells, dtype=torch.long) for _ in range(2))
        length = len(modality)
        self.shares = modality.new_zeros(cells, length, dtype=torch.float32) if trace else None
        self.full = 0

    def add(self, made: CompactLayer, source: CacheLayerMixin) -> None:
        """One more layer, and the prompt's entries that it was made of."""
        heads, length = source.keys.shape[1:3]
        self.tokens += made.counts.view(-1, heads).sum(1).double() / heads
        self.stored += made.sizes().view(-1, heads).sum(1)
        self.away += made.host_sizes().view(-1, heads).sum(1)
        for places, owner in made.held():
            self.images += _images(places, owner, self.modality, self.cells, heads)
            if self.shares is not None:
                self.shares += _holding(places, owner, self.cells, length, heads) / heads
        self.full += source.keys.nbytes + source.values.nbytes

    def kept(self, prefill: Prefill, layout: Layout, cells: Sequence[Cell]) -> list[Kept]:
        """The figures of each cell."""
        whole, number = _uncompressed_bytes(prefill, layout), len(layout.layers)
        pictured, found = _read(self.images, [_scalars(prefill, cell) for cell in cells])
        sums = (self.tokens.tolist(), pictured, self.stored.tolist(), self.away.tolist())
        kept = []
        for cell, scalars, *amounts in zip(cells, found, *sums, strict=True):
            count, image, size, host = amounts
            sizes = size + whole, self.full + whole, host
            kept.append(_kept(prefill, cell, scalars, count / number, image / number, *sizes))
        if self.shares is None:
            return kept
        pairs = zip(kept, self.shares, strict=True)
        return [replace(one, shares=own / number) for one, own in pairs]


def _images(places: Tensor, owner: Tensor, modality: Tensor, cells: int, heads: int) -> Tensor:
    """Image entries of each cell, mean over its heads [cells]; places [T, n] of owner [T]."""
    image = (modality[places.clamp_min(0)] * (places >= 0)).sum(1).float()
    owners = image.new_zeros(cells * heads).index_add_(0, owner, image)
    return owners.view(cells, heads).mean(1)


def _holding(places: Tensor, owner: Tensor, cells: int, length: int, heads: int) -> Tensor:
    """How many heads of each cell hold each prompt token, float32 [cells, length]."""
    cell = (owner // heads)[:, None]
    place = torch.where(places < 0, length, places)  # empty entries go to a last column
    index = (cell * (length + 1) + place).flatten()
    found = index.new_zeros(cells * (length + 1), dtype=torch.float32)
    found.index_add_(0, index, torch.ones_like(index, dtype=torch.float32))
    return found.view(cells, length + 1)[:, :length]


def _uncompressed_bytes(prefill: Prefill, layout: Layout) -> int:
    compressed = {layer.index for layer in layout.layers}
    rest = [layer for i, layer in enumerate(prefill.cache.layers) if i not in compressed]
    return sum(each.nbytes for layer in rest for each in tensors(layer))


class _Scalars(NamedTuple):
    """The largest scores by which a cell chose, of the layers where it had a choice, and the
    adaptive shares of its layers where its policy has such.
    """

    peaks: Sequence[Any]
    adaptive: Sequence[Any]


def _selected(prefill: Prefill, cell: Cell) -> list[Selection]:
    """What a cell keeps of each layer; nothing is selected for the full cache."""
    policy = cell.branch.policy
    return [] if policy is None else [of[id(policy)][cell.count] for of in prefill.selections]


def _scalars(prefill: Prefill, cell: Cell) -> _Scalars:
    found = _selected(prefill, cell)
    return _Scalars(
        [one.peak for one in found if one.peak is not None],
        [one.adaptive for one in found if one.adaptive is not None],
    )


def _read(images: Tensor, scalars: Sequence[_Scalars]) -> tuple[list[float], list[_Scalars]]:
    """Image entries [cells] and the scalars of each cell as numbers, by one copy."""
    flat = [x for each in scalars for part in each for x in part if isinstance(x, Tensor)]
    found = iter((torch.cat([images, torch.stack(flat)]) if flat else images).tolist())
    pictured = list(islice(found, len(scalars)))

    def number(scalar: float | Tensor) -> float:
        return next(found) if isinstance(scalar, Tensor) else scalar

    return pictured, [_Scalars(*(list(map(number, part)) for part in each)) for each in scalars]


def _kept(
    prefill: Prefill,
    cell: Cell,
    scalars: _Scalars,
    tokens: float,
    image: float,
    cache_bytes: int,
    full_cache_bytes: int,
    host_bytes: int,
) -> Kept:
    found, shares = _selected(prefill, cell), scalars.adaptive
    return Kept(
        tokens,
        image,
        cache_bytes,
        full_cache_bytes,
        host_bytes,
        window=found[0].window if found else None,
        adaptive=sum(shares) / len(shares) if shares else None,
        fallback=next((one.fallback for one in found if one.fallback), None),
        finite=all(map(isfinite, scalars.peaks)),
    )
