"""XAttention (arXiv 2503.16428): blocks by the sums of their antidiagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.sparse.blocks import BLOCK, count
from harness.sparse.pattern import Pattern
from methods.checks import require, require_number

STRIDES = (4, 8, 16, 32)  # tokens; what divides a block
PART_BYTES = 1 << 27  # of the sums that exist at a time, or those of one block of queries


@dataclass(frozen=True, kw_only=True)
class XAttention(Pattern):
    """The blocks that cover `threshold` of the attention as sums of antidiagonals estimate it.

    Tokens are taken in groups of `stride`; the logit of two groups is the sum along their
    antidiagonal over the stride, and its softmax, summed over a block, is the block's score. Each
    block of queries takes the first block, its own, and then the best until they cover the
    threshold. Rules and defaults are those of the released code (mit-han-lab/x-attention at
    e379887), which has strides of 8 and 16 and, for Llama, a threshold of its own for each head.
    """

    name: ClassVar[str] = "xattention"
    title: ClassVar[str] = "XAttention"
    stride: int = 8
    threshold: float = 0.9

    def __post_init__(self) -> None:
        """Refuse values the rule has no meaning for."""
        super().__post_init__()
        require(self.stride in STRIDES, self.name, "stride", self.stride, "4, 8, 16 or 32")
        require_number(self.name, "threshold", self.threshold, 0, 1)

    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Score and choose, a KV head at a time."""
        group = query.shape[0] // key.shape[0]
        pairs = zip(query.split(group), key, strict=True)
        return self._chosen(torch.cat([self._scores(q, k, scaling) for q, k in pairs]))

    def _scores(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Scores of blocks [g, n, n], float32, of queries [g, L, d] and keys [L, d]."""
        ours = self._grouped(query, reverse=True)  # [g, m, stride * d]
        theirs = self._grouped(key[None], reverse=False)[0]  # [m, stride * d]
        wide, m, n = BLOCK // self.stride, len(theirs), count(query.shape[1])
        rows = wide * max(1, PART_BYTES // (4 * len(query) * m * wide))
        place, found = torch.arange(m, device=key.device), []
        for start in range(0, m, rows):
            logits = ours[:, start : start + rows] @ theirs.T * (scaling / self.stride)
            later = place > place[start : start + rows, None]
            weights = logits.masked_fill_(later, -torch.inf).softmax(-1)
            weights = pad(weights, (0, wide * n - m, 0, -weights.shape[1] % wide))
            found.append(weights.unflatten(2, (n, wide)).unflatten(1, (-1, wide)).sum((2, 4)))
        return torch.cat(found, dim=1)

    def _grouped(self, vectors: Tensor, reverse: bool) -> Tensor:
        """Vectors [g, L, d] in groups [g, m, stride * d], each in order or reversed, float32."""
        grouped = pad(vectors.float(), (0, 0, 0, -vectors.shape[1] % self.stride))
        grouped = grouped.unflatten(1, (-1, self.stride))
        return (grouped.flip(2) if reverse else grouped).flatten(2)

    def _chosen(self, scores: Tensor) -> Tensor:
        """The mask of scores [H, n, n], whose rows need not sum to 1."""
        n = scores.shape[-1]
        always = torch.eye(n, dtype=torch.bool, device=scores.device)
        always[:, 0] = True
        scores = scores.double()
        wanted = self.threshold * scores.sum(-1, keepdim=True)
        free = scores.masked_fill(always, 0)
        ranked = free.sort(dim=-1, descending=True, stable=True)
        covered = (scores - free).sum(-1, keepdim=True) + ranked.values.cumsum(-1) - ranked.values
        taken = (covered < wanted) & (ranked.values > 0)
        return always | torch.zeros_like(taken).scatter_(-1, ranked.indices, taken)
