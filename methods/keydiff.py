"""KeyDiff (arXiv 2504.15364): keys that point away from the mean key, no queries needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class KeyDiff(ScoringPolicy):
    """Score a token by 1 - the cosine between its rotated key and the head's anchor.

    The anchor is the mean of the head's keys, each scaled to length 1. Nothing is protected. The
    paper processes the prompt in blocks and evicts after each, and again while decoding, with the
    anchor of the keys held by then; here the whole prompt is ranked once.
    """

    name: ClassVar[str] = "keydiff"
    title: ClassVar[str] = "KeyDiff"

    def measure(self, view: LayerView) -> Tensor:
        """Distance from the anchor in [0, 2]; 1 for a key of zeros."""
        unit = normalize(view.keys.float(), dim=-1)  # [B, Hkv, L, d]
        anchor = normalize(unit.mean(2, keepdim=True), dim=-1)
        return (1.0 - (unit * anchor).sum(-1)).clamp_min(0.0)
