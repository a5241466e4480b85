"""A-shape: the first tokens and a window, for all heads alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.sparse.blocks import BLOCK, count, distances
from harness.sparse.pattern import Pattern
from methods.checks import require_count


@dataclass(frozen=True, kw_only=True)
class AShape(Pattern):
    """Every query sees the first `sinks` tokens and the last `window` before it.

    The attention of StreamingLLM (arXiv 2309.17453), called A-shape in MInference (arXiv
    2407.02490), whose released code has these defaults.

    In tokens, and whole blocks: each that holds such a pair is computed.
    """

    name: ClassVar[str] = "a_shape"
    title: ClassVar[str] = "A-shape"
    sinks: int = 128
    window: int = 3968

    def __post_init__(self) -> None:
        """Refuse values that are no counts."""
        super().__post_init__()
        require_count(self.name, "sinks", self.sinks, 0)
        require_count(self.name, "window", self.window, 1)

    def search(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """The same for every head; queries and keys are not looked at."""
        n = count(query.shape[1])
        away = distances(n, query.device)
        # The nearest tokens of two blocks are BLOCK * away - (BLOCK - 1) apart.
        near = BLOCK * away - (BLOCK - 1) < self.window
        near[:, : count(self.sinks)] = True
        return (near & (away >= 0)).repeat(query.shape[0], 1, 1)
