"""The compacted cache of all cells: one gather a layer, padded to the longest cell.

Follows the conventions of transformers' caches: lengths count the tokens SEEN. It must not know
how the kept positions were chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_ROOM = 16  # columns for new tokens before the first reallocation


class CompactLayer(CacheLayerMixin):
    """Kept prompt entries of every cell, then the tokens decoded since.

    keys, values: buffers [cells, Hkv, capacity, d], of which `filled` columns are used: first
    `width` columns of prompt entries, valid where `valid` [cells, width] is True (None:
    everywhere).
    """

    is_sliding = False

    def __init__(
        self, keys: Tensor, values: Tensor, width: int, valid: Tensor | None, seen: int
    ) -> None:
        super().__init__()
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.width = self.filled = width
        self.valid = valid
        self.seen = seen
        self.is_initialized = True

    @classmethod
    def gather(
        cls, keys: Tensor, values: Tensor, index: Tensor, valid: Tensor | None, seen: int
    ) -> CompactLayer:
        """Gather prompt keys and values [1, Hkv, L, d] at index [cells, Hkv, width]."""
        width = index.shape[-1]
        index = torch.nn.functional.pad(index, (0, _ROOM))
        return cls(_take(keys, index), _take(values, index), width, valid, seen)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [cells, Hkv, q, d] and return all used columns."""
        start, stop = self.filled, self.filled + key_states.shape[2]
        if stop > self.keys.shape[2]:
            grow = (0, 0, 0, stop + max(_ROOM, stop // 4) - self.keys.shape[2])
            self.keys = torch.nn.functional.pad(self.keys, grow)
            self.values = torch.nn.functional.pad(self.values, grow)
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        self.filled = stop
        self.seen += stop - start
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        """Tokens seen, not stored."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Stored columns with the query's own, and how many seen tokens are not stored."""
        return self.filled + query_length, self.seen - self.filled

    def get_max_length(self) -> int:
        """-1: grows without limit."""
        return -1

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only these cells."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class CellCache(Cache):
    """The caches of a batch of cells: compact layers, and sliding-window layers as they were."""

    def select(self, rows: Tensor) -> None:
        """Keep only these cells, so that finished ones cost nothing."""
        masks: dict[int, Tensor] = {}
        for layer in self.layers:
            layer.batch_select_indices(rows)
            valid = getattr(layer, "valid", None)
            if valid is not None:
                layer.valid = masks.setdefault(id(valid), valid[rows])


def branch(prompt: Cache, compact: dict[int, CompactLayer], cells: int) -> CellCache:
    """A cache of `cells` rows: the compact layers, and every other layer of the prompt repeated."""
    layers = []
    for index, layer in enumerate(prompt.layers):
        if index in compact:
            layers.append(compact[index])
            continue
        shared = copy.copy(layer)
        shared.keys = layer.keys.expand(cells, -1, -1, -1)
        shared.values = layer.values.expand(cells, -1, -1, -1)
        layers.append(shared)
    return CellCache(layers=layers)


def pad_positions(positions: Sequence[Tensor]) -> Tensor:
    """Stack [Hkv, n_i] into [cells, Hkv, n_max], padded with position 0."""
    counts = [kept.shape[-1] for kept in positions]
    width = max(counts)
    if min(counts) == width:
        return torch.stack(tuple(positions))
    index = positions[0].new_zeros(len(positions), positions[0].shape[0], width)
    for row, kept in enumerate(positions):
        index[row, :, : counts[row]] = kept
    return index


def valid_columns(counts: Sequence[int], device: torch.device) -> Tensor | None:
    """True where a cell has an entry [cells, n_max]; None when all cells have equally many."""
    width = max(counts)
    if min(counts) == width:
        return None
    return torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]


def _take(entries: Tensor, index: Tensor) -> Tensor:
    """entries [1, Hkv, L, d] at index [cells, Hkv, n] -> [cells, Hkv, n, d]."""
    _, heads, length, dim = entries.shape
    offsets = torch.arange(heads, device=index.device)[:, None] * length
    flat = entries.reshape(heads * length, dim).index_select(0, (index + offsets).flatten())
    return flat.view(*index.shape, dim)
