"""Uniformly random tokens: the floor every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require_count
from .policy import LayerView, Policy


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keep a random set for each KV head; a smaller budget keeps a subset. Nothing is protected.

    seed: whole number, 0 or more. The draw depends on the seed, the layer, the head, the length and
    the norm of the layer's keys to five digits: the same prompt gives the same set whatever the
    memory layout and, in float32, almost always on another machine; two prompts of one length
    rarely share theirs. No global random state is read or changed.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a seed that is not a whole number."""
        require_count(self.name, "seed", self.seed, 0)

    def measure(self, view: LayerView) -> Tensor:
        """Uniform draws in [0, 1)."""
        draws = []
        for content in view.keys.double().square().sum((1, 2, 3)).sqrt().tolist():
            text = f"{self.seed}/{view.layer}/{view.length}/{content:.4e}"
            digest = blake2b(text.encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            draws.append(torch.rand(view.kv_heads, view.length, generator=generator))
        return torch.stack(draws).to(view.keys.device)
