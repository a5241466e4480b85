"""ChunkKV (arXiv 2502.00299): whole chunks of neighbouring tokens by their mean attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import WINDOW, require, require_count, require_flag
from .policy import Plan, Scored
from .snapkv import SnapKV
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class ChunkKV(SnapKV):
    """Score a token by the mean of SnapKV's scores over its chunk of `chunk` tokens.

    Chunks are counted from the first token; the protected window cuts the last one short. Of the
    chunk that the budget cuts, the first tokens stay, so counts are exact. shared=true: the heads
    of a layer have one score, their mean, and keep the same chunks; false: each has its own, which
    budget=adaptive needs. budget=global cuts one chunk of the whole model.

    The paper pools nothing but chunks; kernel is above 1 to pool before, as NVIDIA's kvpress does
    with ChunkKV around SnapKV (kernel=5, chunk=20). There the window has no protection of its own:
    its tokens get the largest score and count in the mean of the chunk that they share with others;
    the budget is rounded down to whole chunks, and batch item 0 decides for the batch. The paper's
    reuse of one layer's chunks by the next saves time and is not here.
    """

    name: ClassVar[str] = "chunkkv"
    title: ClassVar[str] = "ChunkKV"
    value_norm: bool = field(default=False, init=False)
    kernel: int = 1
    chunk: int = 10
    shared: bool = True

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_count(self.name, "chunk", self.chunk, 1, WINDOW)
        require_flag(self.name, "shared", self.shared)
        apart = self.budget != "adaptive" or not self.shared
        allowed = "another rule or shared=false, as heads with one score have equal shares"
        require(apart, self.name, "budget", self.budget, allowed)

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Means over the chunks before each protected window."""
        scores, adaptive, _ = super().rescore(view, measured, plans)  # [plans, B, Hkv, L]
        if self.shared:
            scores = scores.mean(2, keepdim=True)
        past = torch.tensor([view.length - plan.window for plan in plans], device=scores.device)
        place = torch.arange(view.length, device=scores.device)
        scores = torch.where(place < past[:, None, None, None], scores, 0.0)
        chunks = pad(scores, (0, -view.length % self.chunk)).unflatten(-1, (-1, self.chunk))
        sizes = (past[:, None] - place[:: self.chunk]).clamp(1, self.chunk)  # [plans, chunks]
        means = chunks.sum(-1) / sizes[:, None, None]
        spread = means.repeat_interleave(self.chunk, dim=-1)[..., : view.length]
        return Scored(spread.expand(len(plans), *measured.shape), adaptive)
