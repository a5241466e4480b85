"""The token score of VL-Cache (arXiv 2410.23317): attention of the text behind the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require, require_choice, require_flag, require_number
from .policy import Plan, over_group
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class PostVision(ScoringPolicy):
    """Keep the recent tokens and, of the rest, what queries behind the last image attend to most.

    recent: fraction of the budget that the last tokens take. group: sum, mean or max over the query
    heads of a KV head, after the sum over queries. shared=true: the heads of a layer have one
    score, their sum. A prompt without images is all text, and all its queries count. One that ends
    with an image has none to count and is refused, as in EffiVLM-Bench, whose code this score was
    checked with (the authors released none).

    This is not all of VL-Cache: its layers also share the budget by how sparse this attention is.
    """

    name: ClassVar[str] = "post_vision"
    title: ClassVar[str] = "post-vision attention"
    made_for_images: ClassVar[bool] = True
    comparable_if: ClassVar[str] = "shared=false"
    window: None = field(default=None, init=False)
    recent: float = 0.1
    group: str = "sum"
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_number(self.name, "recent", self.recent, 0, 1)
        require_choice(self.name, "group", self.group, ("sum", "mean", "max"))
        require_flag(self.name, "shared", self.shared)
        apart = self.budget != "adaptive" or not self.shared
        allowed = "another rule or shared=false, as heads with one score have equal shares"
        require(apart, self.name, "budget", self.budget, allowed)

    @property
    def comparable(self) -> bool:
        """The same queries share out as much attention on each layer, to each head by itself."""
        return not self.shared

    def measure(self, view: LayerView) -> Tensor:
        """Column sums of the rows behind the last image, one for each KV head."""
        rows = _behind_images(view)
        sums = view.collected() if rows == view.length else view.columns(rows, "end")[0]
        scores = over_group(sums, view.kv_heads, self.group)
        return scores.sum(1, keepdim=True).expand_as(scores) if self.shared else scores

    def plan(self, view: LayerView, count: int) -> Plan:
        """The last tokens take their fraction of what is kept, rounded down."""
        return Plan(0, int(self.recent * count + 1e-9))  # 0.29 of 100 is 29, and less in binary


def _behind_images(view: LayerView) -> int:
    """How many tokens follow the last image token; all where there is none."""
    if view.modality is None:
        return view.length
    place = torch.arange(1, view.length + 1, device=view.modality.device)
    last = (view.modality.bool() * place).amax(1).tolist()  # tokens up to the last image, [B]
    if len(set(last)) > 1:
        raise ValueError(
            "post_vision: the images of a batch end at different tokens; give one prompt at a time."
        )
    if last[0] == view.length:
        raise ValueError(
            "post_vision: scores by the text behind the images and none is there when the cache is "
            "evicted; use protocol=replay or another method."
        )
    return view.length - int(last[0])
