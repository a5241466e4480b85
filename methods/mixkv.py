"""MixKV (arXiv 2510.20707): importance mixed with diversity, by how alike a head's keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from .checks import require_number
from .policy import Plan, Scored
from .snapkv import SnapKV
from .view import LayerView

_TINY = 1e-8  # what the released code adds to a mean that divides


@dataclass(frozen=True, kw_only=True)
class MixKV(SnapKV):
    """Score a token by w * diversity + (1 - w) * importance.

    importance: SnapKV's score as a mean over the window, plus the length of the value; diversity:
    minus the cosine between the key and the mean of all unit keys of its head. Lengths and cosines
    are put on a scale from 0 to 1 among the tokens before the protected window, then multiplied so
    that their mean is that of the attention.

    diversity: the weight w; None: for each head the mean cosine between two keys of the prompt, at
    least 0, so that heads with keys alike look for other ones more. The authors average that number
    over prompts of a data set once for each model: their released code computes it online too, and
    then reads the stored one. Its other setting, a third of each, is not here.
    """

    name: ClassVar[str] = "mixkv"
    title: ClassVar[str] = "MixKV"
    comparable_if: ClassVar[str] = ""
    value_norm: bool = field(default=False, init=False)
    diversity: float | None = None

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        if self.diversity is not None:
            require_number(self.name, "diversity", self.diversity, 0, 1)

    @property
    def comparable(self) -> bool:
        """Lengths and cosines are on the scale of their head."""
        return False

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Mix what lies before each protected window."""
        attention, adaptive, _ = super().rescore(view, measured / self.rows(view), plans)
        past = torch.tensor([view.length - plan.window for plan in plans], device=measured.device)
        before = torch.arange(view.length, device=measured.device) < past[:, None, None, None]
        attention = attention.masked_fill(~before, 0.0)
        level = attention.sum(-1, keepdim=True) / past[:, None, None, None]
        cosine, redundancy = _likeness(view)
        lengths = vector_norm(view.values.float(), dim=-1)
        far, long = (_placed(each, before, level) for each in (-cosine, lengths))
        weight = redundancy if self.diversity is None else self.diversity
        return Scored(weight * far + (1 - weight) * (attention + long), adaptive)


def _likeness(view: LayerView) -> tuple[Tensor, Tensor]:
    """Cosine of each key with the mean unit key times its length, [B, Hkv, L], and the mean cosine
    between two different keys, [B, Hkv, 1], at least 0.
    """
    unit = normalize(view.keys.float(), dim=-1)
    mean = unit.mean(2, keepdim=True)
    pairs = view.length * mean.square().sum(-1) - 1
    return (unit * mean).sum(-1), (pairs / max(1, view.length - 1)).clamp_min(0.0)


def _placed(states: Tensor, before: Tensor, level: Tensor) -> Tensor:
    """States [B, Hkv, L] from 0 to 1 among the tokens `before`, then with the mean `level`; float32
    [plans, B, Hkv, L], 0 elsewhere.
    """
    low = states.masked_fill(~before, torch.inf).amin(-1, keepdim=True)
    high = states.masked_fill(~before, -torch.inf).amax(-1, keepdim=True)
    room = high - low
    placed = torch.where(before & (room > 0), (states - low) / room, 0.0)
    mean = placed.sum(-1, keepdim=True) / before.sum(-1, keepdim=True)
    return placed * (level / (mean + _TINY))
