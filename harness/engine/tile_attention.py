"""Attention of new tokens over entries in tiles: each tile by itself, then joined by sequence.

The tile products are small matrix products over all tiles at once, so sequences of different
lengths cost what they hold and nothing is padded or copied. It must not know policies or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.engine.tiles import Tiles


def tile_logits(tiles: Tiles, queries: Tensor, scaling: float) -> Tensor:
    """float32 [T, R, tile] of queries [S, R, d] against the keys as they are stored."""
    return torch.bmm(queries[tiles.owner], tiles.keys.transpose(1, 2)).float().mul_(scaling)


def attend(tiles: Tiles, logits: Tensor, new: int, seen: int) -> tuple[Tensor, Tensor]:
    """Softmax over each sequence, and what it takes from the values.

    The R rows of the logits [T, R, tile] are g query heads x `new` tokens, of which the last is
    token seen - 1; the logits are overwritten. Returns outputs [S, R, dv] and weights float32 [T,
    R, tile], zero where there is no entry.
    """
    owner, sequences, rows = tiles.owner, len(tiles.counts), logits.shape[1]
    logits.masked_fill_(_hidden(tiles, rows, new, seen), -torch.inf)
    top = logits.new_full((sequences, rows), -torch.inf)
    top.scatter_reduce_(0, owner[:, None].expand(-1, rows), logits.amax(-1), "amax")
    weights = logits.sub_(top[owner][..., None]).exp_()
    total = logits.new_zeros(sequences, rows).index_add_(0, owner, weights.sum(-1))
    weights /= total[owner][..., None]
    parts = torch.bmm(weights.to(tiles.values.dtype), tiles.values).float()
    output = parts.new_zeros(sequences, rows, parts.shape[-1]).index_add_(0, owner, parts)
    return output.to(tiles.values.dtype), weights


def _hidden(tiles: Tiles, rows: int, new: int, seen: int) -> Tensor:
    """True where a row must not look, broadcastable to [T, R, tile]."""
    places = tiles.places[:, None]  # [T, 1, tile]
    if new == 1:
        return places < 0
    token = torch.arange(seen - new, seen, device=places.device)[:, None]
    hidden = (places < 0) | (places > token)  # [T, new, tile]
    return hidden.repeat(1, rows // new, 1)
