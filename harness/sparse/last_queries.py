"""What the last queries of a prompt attend to, by key and by distance: the estimate of MInference
(arXiv 2407.02490) and FlexPrefill (arXiv 2502.20766).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.sparse.blocks import best, distances, pooled


def estimate(query: Tensor, key: Tensor, scaling: float, rows: int) -> tuple[Tensor, Tensor]:
    """The mean attention that the last `rows` queries give, float32 [H, L] both: to each key, and
    along each diagonal, the one L - 1 tokens away first and that of the tokens themselves last.

    query [H, L, d], key [Hkv, L, d]. A KV head at a time, since its rows are as long as the prompt.
    """
    rows = min(rows, key.shape[1])
    group = query.shape[0] // key.shape[0]
    found = []
    for own, keys in zip(query[:, -rows:].split(group), key, strict=True):
        weights = _attention(own, keys, scaling)
        found.append((weights.mean(1), _diagonals(weights) / rows))
    to_keys, along = zip(*found, strict=True)
    return torch.cat(to_keys), torch.cat(along)


def _attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Softmax rows [g, rows, L] of the last queries [g, rows, d], float32."""
    rows, length = query.shape[1], key.shape[0]
    logits = query.float() @ key.float().T * scaling
    later = torch.ones(rows, length, dtype=torch.bool, device=key.device)
    return logits.masked_fill_(later.triu(1 + length - rows), -torch.inf).softmax(-1)


def _diagonals(weights: Tensor) -> Tensor:
    """Sums [g, L] of the last rows [g, rows, L] along their diagonals.

    Each row is shifted by one against the one before, which a view with one column more does.
    """
    rows, length = weights.shape[-2:]
    wide = pad(weights, (rows - 1, 0)).flatten(-2)
    return pad(wide, (0, rows)).unflatten(-1, (rows, -1))[..., :length].sum(-2)


def vertical_slash(to_keys: Tensor, along: Tensor, verticals: Tensor, slashes: Tensor) -> Tensor:
    """The mask [H, n, n] of the best columns and diagonals of blocks.

    to_keys, along: of `estimate`, as sums over blocks [H, n]. verticals, slashes int64 [H]: how
    many of each. The first column and the main diagonal are always among them.
    """
    to_keys, along = to_keys.clone(), along.clone()
    to_keys[:, 0] = along[:, -1] = torch.inf
    columns = best(to_keys, verticals)
    diagonals = best(along, slashes).flip(-1)  # by distance
    away = distances(columns.shape[-1], columns.device)
    return (columns[:, None] | diagonals[:, away.clamp(min=0)]) & (away >= 0)


def by_block(to_keys: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """What `estimate` found, summed over blocks of keys or diagonals."""
    return pooled(to_keys), pooled(along)
