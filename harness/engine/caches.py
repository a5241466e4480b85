"""The caches of a batch of cells: all layers of a model, compact ones and others.

Must not know how the kept positions were chosen or how a compact layer works.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from harness.engine.cache import CompactLayer
from harness.engine.contest import Contest
from harness.engine.hold import Shown, evict
from methods.kernels import send


class CellCache(Cache):
    """The caches of a batch of cells: compact layers, and all other layers as they were.

    later: layers that have attended and not evicted yet; contest: those that wait for all layers.
    """

    def __init__(self, layers: list[CacheLayerMixin]) -> None:
        super().__init__(layers=layers)
        self.later: list[Shown] = []
        self.contest = Contest()

    def evict(self) -> None:
        """Let layers that wait evict, those that are alike together."""
        alike: dict[object, list[Shown]] = {}
        for shown in self.later:
            alike.setdefault(shown.kind(), []).append(shown)
        self.later.clear()
        for layers in alike.values():
            evict(layers)

    def select(self, rows: Tensor, device: torch.device) -> None:
        """Keep only these cells (int64 on the host), so that finished ones cost nothing."""
        sent = send(rows, device)
        for layer in self.layers:
            if isinstance(layer, CompactLayer):
                layer.batch_select_indices(rows)
            elif isinstance(layer, LinearAttentionCacheLayerMixin):
                layer.reorder_cache(sent)  # its states alone
            else:
                layer.batch_select_indices(sent)

    def divide(self, parts: Sequence[Tensor]) -> list[CellCache]:
        """A cache for each of these cells (int64 on the host); every layer must be compact.

        This one is empty then.
        """
        divided: list[list[CacheLayerMixin]] = [[] for _ in parts]
        while self.layers:  # a layer exists twice no longer than it takes
            layer = self.layers.pop(0)
            for rows, layers in zip(parts, divided, strict=True):
                layers.append(layer.part(rows))
        return [CellCache(layers=layers) for layers in divided]


def tensors(layer: CacheLayerMixin) -> list[Tensor]:
    """What a layer of a cache holds: keys and values, or the states of a recurrent one."""
    held = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    for name in ("conv_states", "recurrent_states"):
        held += getattr(layer, name, {}).values()
    return [each for each in held if isinstance(each, Tensor)]


def branch(prompt: Cache, compact: dict[int, CompactLayer], cells: int) -> CellCache:
    """A cache of `cells` rows: the compact layers, and every other layer of the prompt repeated."""
    layers = []
    for index, layer in enumerate(prompt.layers):
        if index in compact:
            layers.append(compact[index])
            continue
        layers.append(_repeated(layer, cells))
    return CellCache(layers=layers)


def _repeated(layer: CacheLayerMixin, cells: int) -> CacheLayerMixin:
    """The same layer for each cell; the states of a recurrent one are copied, for they change."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        own = copy.deepcopy(layer)
        own.reorder_cache(torch.zeros(cells, dtype=torch.long, device=layer.device))
        return own
    shared = copy.copy(layer)
    if layer.keys is not None:
        shared.keys = layer.keys.expand(cells, -1, -1, -1)
        shared.values = layer.values.expand(cells, -1, -1, -1)
    return shared
