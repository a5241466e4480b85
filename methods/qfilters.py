"""Q-Filters (arXiv 2503.02812): keys along the main direction of a model's queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .budgets import protected_window
from .checks import require, require_count
from .files import Stamps, found, pinned
from .policy import Plan
from .scoring import ScoringPolicy
from .view import LayerView

TENSOR = "q_filters"  # what the released filters call it


@dataclass(frozen=True, kw_only=True)
class QFilters(ScoringPolicy):
    """Score a token by minus the product of its rotated key with the filter of its KV head.

    Filters come from the queries of other prompts (`filters_of`), so no query of this one is looked
    at, and its score is the same whatever is asked. filters: a safetensors file, or a folder with
    one, that holds q_filters [layers, KV heads, head_dim] as the released ones do; they fit one
    model only. recent: last tokens that stay; the authors' cache takes it as window_length, and
    kvpress has none.

    The authors' cache is evicted to a fixed size whenever it is full, while decoding too; here the
    prompt is evicted once and new tokens stay.
    """

    name: ClassVar[str] = "qfilters"
    title: ClassVar[str] = "Q-Filters"
    filters: str | None = None
    recent: int = 0

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        text = self.filters is None or isinstance(self.filters, str)
        require(text, self.name, "filters", self.filters, "the place of filters")
        require_count(self.name, "recent", self.recent, 0)
        allowed = "a rule that takes scores below zero, as many of these are"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    def ready(self) -> QFilters:
        """The same with the digest of its filters behind their place."""
        self._filters("cpu")
        return replace(self, filters=pinned("filters", str(self.filters)))

    def measure(self, view: LayerView) -> Tensor:
        """Minus the product of key and filter."""
        filters = self._filters(str(view.keys.device))
        shape = view.num_layers, view.kv_heads, view.keys.shape[-1]
        if filters.shape != shape:
            raise ValueError(
                f"qfilters: filters={self.filters} are for {_told(tuple(filters.shape))}, this "
                f"model has {_told(shape)}; name the filters that were made for it."
            )
        return -(view.keys.float() * filters[view.layer][:, None]).sum(-1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """The last tokens are protected."""
        return Plan(0, protected_window(self.recent, count))

    def _filters(self, device: str) -> Tensor:
        allowed = "the safetensors file, or its folder, of filters that were made for this model"
        require(self.filters is not None, self.name, "filters", self.filters, allowed)
        return _load(*found("filters", str(self.filters)), device)


def filters_of(queries: Tensor, kv_heads: int) -> Tensor:
    """Filters [Hkv, d] of rotated queries [H, n, d] of a layer, float32.

    Of each query head minus the first right singular vector of its queries, turned so that most of
    them point along the vector; a KV head has the mean of its query heads' filters. The larger the
    product of a key and the filter, the less attention the key gets. Where as many queries point
    one way as the other their sum decides, which the released code leaves to its library.
    """
    left, _, right = torch.linalg.svd(queries.float(), full_matrices=False)
    votes = left[..., 0].sign().sum(-1)
    sign = torch.where(votes == 0, left[..., 0].sum(-1), votes).sign()
    filters = -sign[:, None] * right[:, 0]
    return filters.unflatten(0, (kv_heads, -1)).mean(1)


def _told(shape: tuple[int, ...]) -> str:
    return "{} layers of {} KV heads of size {}".format(*shape)


@lru_cache(maxsize=4)
def _load(place: str, stamps: Stamps, device: str) -> Tensor:
    held = []
    for file, _, _ in stamps:
        try:
            with safe_open(file, "pt") as opened:
                if TENSOR in opened.keys():  # noqa: SIM118, it is no mapping
                    held.append(opened.get_tensor(TENSOR).float())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"filters={place}: {file} cannot be read as safetensors ({error}); download or "
                "make the filters again."
            ) from error
    if len(held) != 1 or held[0].dim() != 3 or not bool(held[0].isfinite().all()):
        raise ValueError(
            f"filters={place} holds no single tensor {TENSOR} of numbers, [layers, KV heads, "
            "head_dim]; name the filters that were made for this model."
        )
    return held[0].to(device)
