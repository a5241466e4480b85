"""From the selections of one prefill to the caches and the figures of its cells.

Must not know how policies select or how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from harness.engine import packing
from harness.engine.cache import CompactLayer
from harness.engine.caches import CellCache, branch
from harness.engine.cells import Cell, of_caches, reindexes
from harness.engine.fetching import Fetched
from harness.engine.holder import Holder
from harness.engine.kept import Counted, Kept
from harness.engine.layout import AttentionLayer, Layout
from harness.engine.packed_layer import PackedLayer
from harness.engine.prefill import Prefill
from harness.engine.rotary import Rotary, Turns
from harness.engine.tiles import Tiles
from methods import Held, Selection, merged
from methods.kernels import Unturning


@dataclass(frozen=True)
class Sequel:
    """What follows the eviction of a prompt.

    modality [L] of the evictable tokens. tail: prompt tokens that are read after the eviction;
    extra: how many of them come on top of the budget of cells that hold it. rotary, and the turns
    [1, L, dim] that the prompt's keys have, where a policy re-indexes positions.
    """

    modality: Tensor
    tail: int = 0
    extra: int = 0
    rotary: Rotary | None = None
    turns: Turns | None = None

    def unturning(self) -> Unturning:
        """How to take the turns off the prompt's keys."""
        assert self.rotary is not None
        assert self.turns is not None  # noted where a policy re-indexes
        cosines, sines = (each[0].float() for each in self.turns)
        return Unturning(cosines, sines, None, self.rotary.interleaved)


@dataclass(frozen=True)
class Batch:
    """Cells ready to decode: their cache, the figures of each, and what layers note of them."""

    cache: CellCache
    kept: list[Kept]
    notes: list[Fetched]

    @classmethod
    def of(cls, prompt: Cache, compact: dict[int, CompactLayer], kept: list[Kept]) -> Batch:
        """One of these compact layers and the others of a prompt."""
        notes = [each.fetched for each in compact.values() if isinstance(each, PackedLayer)]
        return cls(branch(prompt, compact, len(kept)), kept, notes)

    def fetched(self) -> list[tuple[int, int]]:
        """Bytes that each cell has fetched from the host so far, and in how many passes."""
        counted = [(each.bytes.tolist(), each.passes.tolist()) for each in self.notes]
        return [
            (sum(size[cell] for size, _ in counted), max((n[cell] for _, n in counted), default=0))
            for cell in range(len(self.kept))
        ]

    @property
    def bytes(self) -> int:
        """Size of the compact layers."""
        return sum(layer.nbytes for layer in self.cache.layers if isinstance(layer, CompactLayer))


def build(
    prefill: Prefill, layout: Layout, cells: Sequence[Cell], sequel: Sequel, trace: bool = False
) -> Batch:
    """Compact the prompt cache for these cells, one gather a layer; `trace` asks for shares."""
    counted = Counted(len(cells), sequel.modality, trace)
    compact: dict[int, CompactLayer] = {}
    for layer in layout.layers:
        source = prefill.cache.layers[layer.index]
        heads, length = source.keys.shape[1:3]
        chosen = [_chosen(prefill, layer.rank, cell, heads, length) for cell in cells]
        compact[layer.index] = compact_layer(source, chosen, cells, layer, layout, sequel)
        counted.add(compact[layer.index], source)
    return Batch.of(prefill.cache, compact, counted.kept(prefill, layout, cells))


def again(
    batch: Batch, prefill: Prefill, layout: Layout, cells: Sequence[Cell], sequel: Sequel
) -> Batch:
    """A batch of its own for another question, of the same prompt and cells."""
    compact = {}
    for layer in layout.layers:
        made: CompactLayer = batch.cache.layers[layer.index].copy()
        about = made.heads, len(sequel.modality)
        queries = [_chosen(prefill, layer.rank, cell, *about).queries for cell in cells]
        counts = made.counts.view(len(cells), -1).tolist()
        made.holders = _holders(cells, counts, queries, layer, layout, sequel)
        compact[layer.index] = made
    return Batch.of(prefill.cache, compact, batch.kept)


def compact_layer(
    source: CacheLayerMixin,
    chosen: Sequence[Selection],
    cells: Sequence[Cell],
    layer: AttentionLayer,
    layout: Layout,
    sequel: Sequel,
) -> CompactLayer:
    """What the cells keep of one layer's prompt entries, and who evicts from it later.

    source: keys and values [1, Hkv, L, d]; chosen: one Selection a cell.
    """
    counts = [_counts(one) for one in chosen]
    reindexed = [i for i, cell in enumerate(cells) if reindexes(cell.branch.policy)]
    turns = sequel.unturning() if reindexed else None, reindexed
    states = source.keys, source.values
    places = [one.positions[0] for one in chosen]
    carried = [None if one.carried is None else one.carried[0] for one in chosen]
    about = source.keys.shape[1], source.get_seq_length(), sequel.rotary
    caches = of_caches(cells)
    if caches:
        packed, rest, left = packing.gather(*states, places, counts, caches, *turns)
        tiles = Tiles.gather(*states, rest, left, carried, *turns)
        made: CompactLayer = PackedLayer(tiles, *about, packed)
    else:
        tiles = Tiles.gather(*states, places, counts, carried, *turns)
        made = CompactLayer(tiles, *about)
    for i, (cell, own) in enumerate(zip(cells, chosen, strict=True)):
        policy = cell.branch.policy
        if policy is not None and policy.merge != "none":
            states = source.keys[0], source.values[0]
            tiles.rewrite(made.sequences([i]), *merged(*states, own.positions[0], policy.merge))
    made.reindexed = reindexed
    made.holders = _holders(cells, counts, [one.queries for one in chosen], layer, layout, sequel)
    return made


def _chosen(prefill: Prefill, rank: int, cell: Cell, heads: int, length: int) -> Selection:
    """What a cell keeps of one layer."""
    if cell.branch.policy is not None:
        return prefill.selections[rank][id(cell.branch.policy)][cell.count]
    every = torch.arange(length, device=prefill.logits.device)
    return Selection(every.expand(1, heads, -1), 0)


def _counts(chosen: Selection) -> list[int]:
    """Entries of each head."""
    if chosen.counts is None:
        return [chosen.positions.shape[-1]] * chosen.positions.shape[1]
    counts: list[int] = chosen.counts[0].tolist()
    return counts


def _holders(
    cells: Sequence[Cell],
    counts: Sequence[Sequence[int]],
    queries: Sequence[Tensor | None],
    layer: AttentionLayer,
    layout: Layout,
    sequel: Sequel,
) -> list[Holder]:
    """Who evicts while this layer decodes: one holder a policy."""
    found: dict[int, Holder] = {}
    text = sequel.modality == 0
    for i, (cell, each) in enumerate(zip(cells, counts, strict=True)):
        policy = cell.branch.policy
        if policy is None or not cell.holds:
            continue
        spared = text if policy.params.get("protect") == "text" else None
        empty = Holder(policy, layer.rank, len(layout.layers), [], [], [], spared)
        holder = found.setdefault(id(policy), empty)
        kept = round(sum(each) / len(each))
        limit = kept + cell.slack + sequel.extra
        holder.cells.append(i)
        holder.held.append(Held(len(text), kept, limit, sequel.tail, cell.count))
        holder.grown.append(0)
        if (own := queries[i]) is not None:
            holder.queries = own if holder.queries is None else torch.cat([holder.queries, own])
    return list(found.values())
