"""Vertical-slash (MInference, arXiv 2407.02490): a fixed number of columns and diagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.sparse import last_queries
from harness.sparse.blocks import count
from harness.sparse.pattern import Pattern
from methods.checks import require_count


@dataclass(frozen=True, kw_only=True)
class VerticalSlash(Pattern):
    """The columns and diagonals that the last `queries` attend to most.

    vertical, slash: how many, in tokens. They are ranked and computed as whole blocks of 128, as
    FlexPrefill's authors do for their comparison, so 1,000 columns are 8 blocks; the published
    kernel gathers single columns. The defaults are those of most heads of Llama 3.1 8B.
    """

    name: ClassVar[str] = "vertical_slash"
    title: ClassVar[str] = "vertical-slash"
    vertical: int = 1000
    slash: int = 6096
    queries: int = 64

    def __post_init__(self) -> None:
        """Refuse values that are no counts."""
        super().__post_init__()
        for name in ("vertical", "slash", "queries"):
            require_count(self.name, name, getattr(self, name), 1)

    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Rank the blocks by the attention of the last queries."""
        found = last_queries.estimate(query, key, scaling, self.queries)
        numbers = [
            torch.full((query.shape[0],), count(each), device=query.device)
            for each in (self.vertical, self.slash)
        ]
        return last_queries.vertical_slash(*last_queries.by_block(*found), *numbers)
