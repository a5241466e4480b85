"""FlexPrefill (arXiv 2502.20766): each head has as many blocks as cover its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.sparse import last_queries
from harness.sparse.blocks import BLOCK, causal, count, means
from harness.sparse.pattern import Pattern
from methods.checks import require_count, require_number


@dataclass(frozen=True, kw_only=True)
class FlexPrefill(Pattern):
    """Vertical-slash with a budget of its own for each head, or blocks by their pooled scores.

    The last 128 queries show what share of its attention a head gives to each key and diagonal.
    Where pooled keys tell the same (the square root of the Jensen-Shannon divergence is below
    `tau`), the head takes the blocks of pooled queries and keys that cover `gamma` of the
    attention; else the columns and diagonals that cover `gamma`. min_budget: tokens of columns and
    of diagonals that every head has; a prompt that they cover, and one of two blocks, is dense.
    Rules and defaults are those of the released code (bytedance/FlexPrefill at a24b27b).
    """

    name: ClassVar[str] = "flexprefill"
    title: ClassVar[str] = "FlexPrefill"
    gamma: float = 0.9
    tau: float = 0.1
    min_budget: int = 512

    def __post_init__(self) -> None:
        """Refuse values the rule has no meaning for."""
        super().__post_init__()
        require_number(self.name, "gamma", self.gamma, 0, 1)
        require_number(self.name, "tau", self.tau, 0, 1)
        require_count(self.name, "min_budget", self.min_budget, 1)

    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Choose a kind and a budget for each head."""
        heads, length, _ = query.shape
        least, n = count(self.min_budget), count(length)
        if n <= max(2, least):
            return causal(heads, length, query.device)
        to_keys, along = last_queries.estimate(query, key, scaling, BLOCK)
        verticals, slashes = (
            (_covering(each, self.gamma) // BLOCK + 1).clamp(least, n) for each in (to_keys, along)
        )
        to_keys, along = last_queries.by_block(to_keys, along)
        keys = means(key).repeat_interleave(heads // key.shape[0], 0)  # [H, n, d]
        recent = query[:, -BLOCK:].float().mean(1, keepdim=True)
        expected = (recent @ keys.transpose(1, 2))[:, 0] * scaling
        aware = _divergence(expected.softmax(-1), to_keys) < self.tau
        verticals[aware] = slashes[aware] = least
        mask = last_queries.vertical_slash(to_keys, along, verticals, slashes)
        if bool(aware.any()):
            mask[aware] |= self._pooled(query[aware], keys[aware], scaling)
        return mask

    def _pooled(self, query: Tensor, keys: Tensor, scaling: float) -> Tensor:
        """Blocks [h, n, n] that cover gamma of what pooled queries give to pooled keys [h, n, d],
        over all rows together.
        """
        n = keys.shape[1]
        logits = means(query) @ keys.transpose(1, 2) * scaling
        later = torch.ones(n, n, dtype=torch.bool, device=keys.device).triu(1)
        weights = logits.masked_fill(later, -torch.inf).softmax(-1).flatten(1)
        ranked = weights.sort(dim=-1, descending=True, stable=True)
        taken = ranked.values.cumsum(-1) <= self.gamma * n
        chosen = torch.zeros_like(taken).scatter_(-1, ranked.indices, taken)
        return chosen.unflatten(1, (n, n))


def _covering(shares: Tensor, gamma: float) -> Tensor:
    """How many of the largest shares [H, L] it takes to exceed gamma, int64 [H]."""
    return (shares.sort(dim=-1, descending=True).values.cumsum(-1) <= gamma).sum(-1) + 1


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence of distributions [H, n], in nats."""
    middle = (p + q) / 2
    parts = [torch.special.xlogy(each, each / middle).sum(-1) for each in (p, q)]
    return (sum(parts) / 2).clamp(min=0).sqrt()
