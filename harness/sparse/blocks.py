"""Masks of whole blocks: which pairs of query and key blocks a layer computes.

A mask is bool [H, n, n]: query head, block of queries, block of keys, n = ceil(L / BLOCK). Within a
pair that is True every causal pair of tokens is computed. Torch only; it must not know models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128  # tokens, of the published methods


def count(length: int) -> int:
    """Blocks of so many tokens; the last one may be partly filled."""
    return -(-length // BLOCK)


def causal(heads: int, length: int, device: torch.device) -> Tensor:
    """The mask of dense attention."""
    n = count(length)
    return torch.ones(n, n, dtype=torch.bool, device=device).tril().repeat(heads, 1, 1)


def distances(n: int, device: torch.device) -> Tensor:
    """How many blocks a key block is behind a query block, int64 [n, n]; negative ahead of it."""
    place = torch.arange(n, device=device)
    return place[:, None] - place


def finished(mask: Tensor, length: int, last: int) -> Tensor:
    """The mask without what is not causal, with the diagonal, and with all that the blocks of the
    last `last` queries can see.
    """
    n = mask.shape[-1]
    mask = mask | torch.eye(n, dtype=torch.bool, device=mask.device)
    if last:
        mask[:, max(0, length - last) // BLOCK :] = True
    return mask.tril()


def share(mask: Tensor) -> Tensor:
    """The share of the causal pairs of blocks that is computed, float64, no dimension."""
    heads, n, _ = mask.shape
    return mask.sum().double() / (heads * n * (n + 1) // 2)


def pooled(values: Tensor) -> Tensor:
    """Sums [..., n] over the blocks of the last dimension [..., L]."""
    length = values.shape[-1]
    return pad(values, (0, -length % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)


def means(vectors: Tensor) -> Tensor:
    """Means [..., n, d] over the blocks of vectors [..., L, d], float32."""
    length = vectors.shape[-2]
    sums = pooled(vectors.float().transpose(-1, -2)).transpose(-1, -2)
    sizes = torch.full((sums.shape[-2], 1), float(BLOCK), device=vectors.device)
    sizes[-1] = length - BLOCK * (len(sizes) - 1)
    return sums / sizes


def best(scores: Tensor, counts: Tensor) -> Tensor:
    """Which of the scores [H, n] are among the `counts` [H] highest of their head, bool [H, n]; of
    equals the first.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    places = torch.arange(scores.shape[-1], device=scores.device)
    rank.scatter_(-1, order, places.expand_as(order))
    return rank < counts[:, None]
