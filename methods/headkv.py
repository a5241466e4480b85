"""HeadKV (arXiv 2410.19258): heads keep by how important they are, tokens by SnapKV's scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import weighted
from .checks import require, require_number
from .files import pinned
from .importance import load
from .kernels import send
from .policy import Chosen, Plan
from .scoring import ascending
from .snapkv import SnapKV
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class HeadKV(SnapKV):
    """Give each head of each layer a budget by its importance, and keep SnapKV's best within it.

    importance: a safetensors file, a folder with one, or JSON, of a score for each query head of
    each layer (`methods.importance.load`). `python -m scripts.score_heads` measures it for a model;
    the authors' JSON is read as it is. It fits one model only. beta: of the budget besides
    protected tokens each head puts 1 / beta, rounded down, into a pool of the whole model; the pool
    is shared out by importance, and what is left is each head's own. 1: all is shared out. temp:
    importance is taken to this power first. A KV head is as important as its query heads together.
    The total is that of every other method, and `budget` is no parameter: this is a rule itself.

    The released code (FYYFU/HeadKV at 0862a09) repeats keys for every query head and gives each a
    budget and a set of its own, so where query heads share a KV head it stores more than the full
    cache may hold; with as many KV heads as query heads both are one. It rounds each head by
    itself, which drifts from the total, and what exceeds the prompt is lost where it goes to other
    heads here. 110 over a beta of 1.1 is 99 there, for 1.1 is a little more in binary. Scores of
    Llama 3 8B stand for every model with llama in its name. beta=1.5 is its default; its scripts
    try 1.005 to 10.
    """

    name: ClassVar[str] = "headkv"
    title: ClassVar[str] = "HeadKV"
    comparable_if: ClassVar[str] = ""
    value_norm: bool = field(default=False, init=False)
    budget: str = field(default="uniform", init=False)
    pyramid_beta: int = field(default=20, init=False)
    adaptive_floor: float = field(default=0.2, init=False)
    importance: str | None = None
    window: int = 8
    pool: str = "max"
    kernel: int = 7
    beta: float = 1.5
    temp: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        text = self.importance is None or isinstance(self.importance, str)
        require(text, self.name, "importance", self.importance, "the place of heads' scores")
        require_number(self.name, "beta", self.beta, 1, 1e6)
        require_number(self.name, "temp", self.temp, 0.01, 100)

    def ready(self) -> HeadKV:
        """The same with the digest of the file behind its place."""
        self._scores()
        return replace(self, importance=pinned("importance", str(self.importance)))

    def counts(self, view: LayerView, plan: Plan, count: int) -> tuple[int, ...]:
        """Entries of each KV head of the layer when `count` are kept on average."""
        # Where nothing is protected, the best one stays.
        certain = max(1, self.fixed(view, plan))
        shares = self._shares(view)
        free = weighted(shares, count - certain, view.length - certain, self.beta)
        own = free[view.layer * view.kv_heads : (view.layer + 1) * view.kv_heads]
        return tuple(certain + each for each in own)

    def _choose(
        self,
        view: LayerView,
        plan: Plan,
        count: int,
        scores: Tensor,
        order: Tensor,
        free: Tensor | None,
    ) -> Chosen:
        if count == view.length or self.fixed(view, plan) >= count:
            return super()._choose(view, plan, count, scores, order, free)
        counts = self.counts(view, plan, count)
        sent = send(torch.tensor(counts), order.device).expand(view.batch, -1)
        return Chosen(ascending(order, sent, max(counts)), sent, plan.fallback)

    def _shares(self, view: LayerView) -> tuple[float, ...]:
        """Importance of the KV heads of all layers, first layer first; their sum is 1."""
        scores, heads = self._scores(), view.queries.shape[1]
        wanted = view.num_layers, heads
        if tuple(scores.shape) != wanted:
            raise ValueError(
                f"headkv: importance={self.importance} is of {scores.shape[0]} layers of "
                f"{scores.shape[1]} query heads, this model has {wanted[0]} of {wanted[1]}; name "
                "the file that was made for it."
            )
        return _reduced(scores, view.kv_heads, self.temp)

    def _scores(self) -> Tensor:
        allowed = "the safetensors or JSON file of its heads' scores, measured for this model"
        require(self.importance is not None, self.name, "importance", self.importance, allowed)
        return load(str(self.importance))


@lru_cache(maxsize=16)
def _reduced(scores: Tensor, kv_heads: int, temp: float) -> tuple[float, ...]:
    shares = (scores / scores.max()) ** temp
    grouped = shares.unflatten(1, (kv_heads, -1)).sum(-1).flatten()
    return tuple((grouped / grouped.sum()).tolist())
