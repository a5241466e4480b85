"""From the selections of one prefill to the caches and the figures of its cells.

Must not know how policies select or how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.cache import CellCache, CompactLayer, branch, pad_positions, valid_columns
from harness.engine.layout import Layout
from harness.engine.prefill import Prefill
from harness.engine.settings import Branch
from methods import budget


@dataclass(frozen=True)
class Cell:
    """A branch with the number of tokens it may keep of the L evictable ones."""

    branch: Branch
    count: int


@dataclass(frozen=True)
class Kept:
    """Figures of one cell, means over compressed layers and KV heads; bytes over all layers."""

    tokens: float
    image: float
    cache_bytes: int
    full_cache_bytes: int
    window: int | None
    adaptive: float | None
    fallback: str | None


def plan(branches: Sequence[Branch], length: int) -> list[Cell]:
    """Turn ratios and budgets into token counts for a cache of `length` tokens."""
    cells = []
    for wanted in branches:
        if wanted.policy is None:
            count = length
        elif wanted.budget is not None:
            count = min(wanted.budget, length)
        else:
            assert wanted.ratio is not None  # Branch holds exactly one of the two
            count = budget(length, wanted.ratio)
        cells.append(Cell(wanted, count))
    return cells


@dataclass(frozen=True)
class Batch:
    """Cells ready to decode: their cache, and the figures of each."""

    cache: CellCache
    kept: list[Kept]


def build(prefill: Prefill, layout: Layout, cells: Sequence[Cell], modality: Tensor) -> Batch:
    """Compact the prompt cache for these cells, one gather a layer; modality [L] of its tokens."""
    compact: dict[int, CompactLayer] = {}
    masks: dict[tuple[int, ...], Tensor | None] = {}  # layers with equal padding share their mask
    tokens = [0] * len(cells)
    stored = [0] * len(cells)
    images = torch.zeros(len(cells), device=modality.device)
    full = 0
    for layer in layout.layers:
        source = prefill.cache.layers[layer.index]
        _, heads, length, dim = source.keys.shape
        token_bytes = heads * (dim + source.values.shape[-1]) * source.keys.element_size()
        positions = _positions(prefill, layer.rank, cells, heads, length)
        counts = tuple(kept.shape[-1] for kept in positions)
        index = pad_positions(positions)
        if counts not in masks:
            masks[counts] = valid_columns(counts, index.device)
        valid = masks[counts]
        seen = source.get_seq_length()
        compact[layer.index] = CompactLayer.gather(source.keys, source.values, index, valid, seen)
        image = modality[index] if valid is None else modality[index] * valid[:, None]
        images += image.sum((1, 2)) / heads
        full += length * token_bytes
        tokens = [total + count for total, count in zip(tokens, counts, strict=True)]
        stored = [total + count * token_bytes for total, count in zip(stored, counts, strict=True)]
    whole = _uncompressed_bytes(prefill, layout)
    number = len(layout.layers)
    kept = [
        Kept(count / number, image / number, size + whole, full + whole, *_observed(prefill, cell))
        for cell, count, image, size in zip(cells, tokens, images.tolist(), stored, strict=True)
    ]
    return Batch(branch(prefill.cache, compact, len(cells)), kept)


def _positions(
    prefill: Prefill, rank: int, cells: Sequence[Cell], heads: int, length: int
) -> list[Tensor]:
    """What each cell keeps of one layer: [Hkv, n] a cell."""
    device = prefill.logits.device
    every = torch.arange(length, device=device).expand(heads, -1)
    chosen = prefill.selections[rank]
    return [
        every
        if cell.branch.policy is None
        else chosen[id(cell.branch.policy)][cell.count].positions[0]
        for cell in cells
    ]


def _uncompressed_bytes(prefill: Prefill, layout: Layout) -> int:
    compressed = {layer.index for layer in layout.layers}
    rest = [layer for i, layer in enumerate(prefill.cache.layers) if i not in compressed]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in rest)


def _observed(prefill: Prefill, cell: Cell) -> tuple[int | None, float | None, str | None]:
    """The protected window, the adaptive share as a mean over layers, the fallback if any."""
    if cell.branch.policy is None:
        return None, None, None
    found = [layer[id(cell.branch.policy)][cell.count] for layer in prefill.selections]
    shares = [kept.adaptive for kept in found if kept.adaptive is not None]
    adaptive = sum(shares) / len(shares) if shares else None
    return found[0].window, adaptive, next((kept.fallback for kept in found if kept.fallback), None)
