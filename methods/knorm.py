"""Knorm (arXiv 2406.11430): keys of small norm are attended to most, no queries needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.linalg import vector_norm

from .checks import require
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class Knorm(ScoringPolicy):
    """Score a token by minus the length of its key.

    Nothing is protected. The paper leaves the first layers whole and evicts while decoding as well;
    here all layers are alike and the prompt is ranked once, as in NVIDIA's kvpress. Norms are
    float32; releases of kvpress before 0.5.5 rounded them to the dtype of the keys, where most are
    equal in bfloat16.

    budget=adaptive is refused: what is shared between heads must not be negative.
    """

    name: ClassVar[str] = "knorm"
    title: ClassVar[str] = "Knorm"

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        allowed = "another rule, as lengths of keys are no shares of anything"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    def measure(self, view: LayerView) -> Tensor:
        """Minus the Euclidean norm of each rotated key, which rotation does not change."""
        return -vector_norm(view.keys.float(), dim=-1)
