"""Attention of new tokens over entries in tiles: each tile by itself, then joined by sequence.

The tile products are small matrix products over all tiles at once, so sequences of different
lengths cost what they hold. Products and softmax are float32 whatever the entries are. It must not
know policies or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.engine.tiles import Tiles


def product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a b of one dtype, float32: half precision rounds large products, and overflows."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())


def tile_logits(tiles: Tiles, queries: Tensor, scaling: float) -> Tensor:
    """float32 [T, R, tile] of queries [S, R, d] against the keys as they are stored."""
    return product(queries[tiles.owner], tiles.keys.transpose(1, 2)).mul_(scaling)


def attend(tiles: Tiles, logits: Tensor, tokens: range) -> tuple[Tensor, Tensor]:
    """Softmax over each sequence, and what it takes from the values.

    The R rows of the logits [T, R, tile] are g query heads x these tokens of the sequence; the
    logits are overwritten. Returns outputs [S, R, dv] and weights float32 [T, R, tile], zero where
    there is no entry.
    """
    owner, rows = tiles.owner, logits.shape[1]
    logits.masked_fill_(_hidden(tiles, rows, tokens), -torch.inf)
    top = logits.new_full((len(tiles.counts), rows), -torch.inf)
    top.scatter_reduce_(0, owner[:, None].expand(-1, rows), logits.amax(-1), "amax")
    weights = logits.sub_(top[owner][..., None]).exp_()
    total = sum_by_sequence(tiles, weights.sum(-1))
    weights /= total[owner][..., None]
    parts = product(weights.to(tiles.values.dtype), tiles.values)
    return sum_by_sequence(tiles, parts).to(tiles.values.dtype), weights


def sum_by_sequence(tiles: Tiles, parts: Tensor) -> Tensor:
    """Sum of parts [T, ...] over the tiles of each sequence, [S, ...]."""
    if not parts.is_cuda:
        return parts.new_zeros(len(tiles.counts), *parts.shape[1:]).index_add_(
            0, tiles.owner, parts
        )
    return padded_sum(tiles, parts)


def padded_sum(tiles: Tiles, parts: Tensor) -> Tensor:
    """The same in a fixed order, which index_add_ has not on a GPU."""
    every = tiles.view(torch.arange(len(tiles.counts)))
    return every.parts(parts).sum(1)


def _hidden(tiles: Tiles, rows: int, tokens: range) -> Tensor:
    """True where a row must not look, broadcastable to [T, R, tile]."""
    places = tiles.places[:, None]  # [T, 1, tile]
    token = torch.arange(tokens.start, tokens.stop, device=places.device)[:, None]
    hidden = (places < 0) | (places > token)  # [T, tokens, tile]
    return hidden.repeat(1, rows // len(tokens), 1)
