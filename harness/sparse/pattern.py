"""How every pattern of a sparse prefill works: from the queries and keys of a layer to its mask."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pattern(ABC):
    """A rule that chooses the pairs of blocks to compute. Fields are its parameters."""

    name: ClassVar[str]
    title: ClassVar[str]  # as it is written in a sentence

    @property
    def params(self) -> dict[str, object]:
        """Every parameter with its value."""
        return dataclasses.asdict(self)

    @abstractmethod
    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """The mask of one layer, see `blocks`: bool [H, n, n].

        query [H, L, d] and key [Hkv, L, d] of one prompt, rotated; query head h reads KV head
        h // (H / Hkv). scaling: softmax scale. What is not causal counts for nothing.
        """
