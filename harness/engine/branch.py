"""From the selections of one prefill to the caches and the figures of its cells.

Must not know how policies select or how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from harness.engine import packing
from harness.engine.cache import CompactLayer
from harness.engine.caches import CellCache, branch, tensors
from harness.engine.cells import Cell, of_caches, reindexes
from harness.engine.fetching import Fetched
from harness.engine.holder import Holder
from harness.engine.layout import AttentionLayer, Layout
from harness.engine.prefill import Prefill
from harness.engine.rotary import Rotary, Turns
from harness.engine.stored import StoredLayer
from harness.engine.tiles import Tiles
from methods import Held, Selection, merged
from methods.kernels import Unturning


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
        notes = [each.fetched for each in compact.values() if isinstance(each, StoredLayer)]
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
    modality = sequel.modality
    compact: dict[int, CompactLayer] = {}
    stored, away = (torch.zeros(len(cells), dtype=torch.long) for _ in range(2))
    tokens = torch.zeros(len(cells), dtype=torch.float64)  # of a layer it may be no whole number
    images = torch.zeros(len(cells), device=modality.device)
    shares = modality.new_zeros(len(cells), len(modality), dtype=torch.float32) if trace else None
    full = 0
    for layer in layout.layers:
        source = prefill.cache.layers[layer.index]
        heads, length = source.keys.shape[1:3]
        token_bytes = (source.keys.shape[3] + source.values.shape[3]) * source.keys.element_size()
        chosen = [_chosen(prefill, layer.rank, cell, heads, length) for cell in cells]
        made = compact_layer(source, chosen, cells, layer, layout, sequel)
        compact[layer.index] = made
        tokens += made.counts.view(-1, heads).sum(1).double() / heads
        stored += made.sizes().view(-1, heads).sum(1)
        away += made.host_sizes().view(-1, heads).sum(1)
        for places, owner in made.held():
            images += _images(places, owner, modality, len(cells), heads)
            if shares is not None:
                shares += _holding(places, owner, len(cells), length, heads) / heads
        full += heads * length * token_bytes
    whole = _uncompressed_bytes(prefill, layout)
    number = len(layout.layers)
    found = [_scalars(prefill, cell) for cell in cells]
    pictured, found = _read(images, found)
    amounts = zip(tokens.tolist(), pictured, stored.tolist(), away.tolist(), strict=True)
    kept = []
    for cell, scalars, (count, image, size, host) in zip(cells, found, amounts, strict=True):
        sizes = size + whole, full + whole, host
        kept.append(_kept(prefill, cell, scalars, count / number, image / number, *sizes))
    if shares is not None:
        kept = [replace(one, shares=own / number) for one, own in zip(kept, shares, strict=True)]
    return Batch.of(prefill.cache, compact, kept)


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
        made: CompactLayer = StoredLayer(tiles, *about, packed)
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
