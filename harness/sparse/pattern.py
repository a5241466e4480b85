"""How every pattern of a sparse prefill works: from the queries and keys of a layer to its mask."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.sparse.blocks import BLOCK, finished
from methods.checks import require_count


@dataclass(frozen=True, kw_only=True)
class Pattern(ABC):
    """A rule that chooses the pairs of blocks to compute. Fields are its parameters.

    last: so many last queries attend to everything, since observation windows score there. Their
    blocks do as a whole.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as it is written in a sentence
    last: int = BLOCK

    def __post_init__(self) -> None:
        """Refuse values the rule has no meaning for."""
        require_count(self.name, "last", self.last, 1)

    @property
    def params(self) -> dict[str, object]:
        """Every parameter with its value."""
        return dataclasses.asdict(self)

    def covers(self, length: int) -> bool:
        """Whether the last queries leave no block of the prompt that could be sparse."""
        return length - self.last < BLOCK

    def blocks(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """What is computed of one layer, bool [H, n, n]; arguments as of `search`.

        Causal, with the diagonal and all that the last queries see.
        """
        return finished(self.search(query, key, scaling), query.shape[1], self.last)

    @abstractmethod
    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """What the rule chooses of one layer, see `harness.sparse.blocks`: bool [H, n, n].

        query [H, L, d] and key [Hkv, L, d] of one prompt, rotated; query head h reads KV head
        h // (H / Hkv). scaling: softmax scale. What is not causal counts for nothing.
        """
