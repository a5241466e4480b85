"""Uniformly random tokens: the floor every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor

from .checks import BUFFER, require_count, require_decode
from .holding import Step
from .kernels import send
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class Random(ScoringPolicy):
    """Keep a random set for each KV head; a smaller budget keeps a subset. Nothing is protected.

    seed: whole number, 0 or more. The draw depends on the seed, the layer, the head, the length and
    the norm of the layer's keys to five digits: the same prompt gives the same set whatever the
    memory layout and, in float32, almost always on another machine; two prompts of one length
    rarely share theirs. No global random state is read or changed.

    decode: grow selects once, after the prompt; hold also evicts a random entry after every token;
    buffer evicts `buffer` random ones whenever as many tokens are over the budget.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "random eviction"
    spans_layers: ClassVar[bool] = True
    seed: int = 0
    decode: str = "grow"
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        """Refuse a seed that is not a whole number."""
        super().__post_init__()
        require_decode(self)
        require_count(self.name, "seed", self.seed, 0, 2**32 - 1)

    @property
    def comparable(self) -> bool:
        """All draws are alike."""
        return True

    def asks(self, view: LayerView) -> Tensor:
        """The norm of the layer's keys, float64 [B]."""
        return view.keys.double().square().sum((1, 2, 3)).sqrt()

    def measure(self, view: LayerView) -> Tensor:
        """Uniform draws in [0, 1)."""
        draws = []
        contents = self.asks(view).tolist() if view.answers is None else view.answers
        for content in contents:
            text = f"{self.seed}/{view.layer}/{view.length}/{content:.4e}"
            digest = blake2b(text.encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            draws.append(torch.rand(view.kv_heads, view.length, generator=generator))
        return send(torch.stack(draws), view.keys.device)

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """Fresh draws for every step, the same for a token whatever else is in the batch."""
        heads = torch.arange(step.positions.shape[1], device=step.positions.device)[:, None]
        place = (self.seed, step.layer, step.seen)
        mixed = step.positions + 1
        for salt in (*place, heads):
            mixed = _scramble(mixed + salt)
        return mixed.float()


def _scramble(numbers: Tensor) -> Tensor:
    """A bijection of int64 whose results look random (the finaliser of SplitMix64); in place."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        numbers ^= (numbers >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor != 1:
            numbers *= factor
    return numbers
