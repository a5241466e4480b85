"""InfiniPot-V (arXiv 2506.15745): image tokens that changed over time, and long values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from .checks import require, require_count, require_number
from .policy import Plan, Scored
from .scoring import ScoringPolicy
from .view import LayerView

_RECENT = 3.0  # above every cosine


@dataclass(frozen=True, kw_only=True)
class InfiniPotV(ScoringPolicy):
    """Keep the last frames and, of those before, tokens whose keys differ from theirs; then fill
    up by the length of the value. No query is looked at.

    temporal: fraction of the kept image tokens that the first stage chooses. recent: fraction of
    the frames, rounded down and at least one, that the others are compared with: the score of a
    token is minus the mean cosine of its key and those at its place in these frames. They take
    their room of the first stage; where it is too small for them, its last half goes to their last
    tokens. frame: tokens of a frame; None: each run of image tokens is one. Where there are no two
    frames, or not all of one size, values alone decide and Selection.fallback is "value_norm".

    All text stays by default, as published (protect=text). The authors compress a video again and
    again while it is read, 32 frames to 24 in their scripts, and their recent frames always fit;
    here a whole prompt is ranked once. Their released code fails where recent frames do not fit or
    are none. It also pools value lengths over neighbouring patches, layer by layer, if asked; that
    is off by default there and not here.
    """

    name: ClassVar[str] = "infinipot_v"
    title: ClassVar[str] = "InfiniPot-V"
    made_for_images: ClassVar[bool] = True
    temporal: float = 0.5
    recent: float = 0.25
    frame: int | None = None
    protect: str = "text"

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_number(self.name, "temporal", self.temporal, 0, 1)
        require_number(self.name, "recent", self.recent, 0, 1)
        if self.frame is not None:
            require_count(self.name, "frame", self.frame, 1)
        allowed = "another rule, as scores of two stages cannot be pooled over heads"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    def measure(self, view: LayerView) -> Tensor:
        """Lengths of values."""
        return vector_norm(view.values.float(), dim=-1)

    def plan(self, view: LayerView, count: int) -> Plan:
        """The first stage takes its share of what is kept besides the protected tokens."""
        plan = self.bounded(super().plan(view, count), count)
        said = None if self._frames(view) is not None or count == view.length else "value_norm"
        return plan._replace(past=max(0, count - self.fixed(view, plan)), fallback=said)

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Lengths of values, and above them the tokens of the first stage."""
        scores = measured.expand(len(plans), *measured.shape)
        frames = self._frames(view)
        if frames is None:
            return Scored(scores, [None] * len(plans))
        above = 2.0 * measured.amax(-1, keepdim=True) + 1.0
        protected = self._protection(view, plans)
        if protected is None:
            protected = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=above.device)
        found = []
        for plan, spared in zip(plans, protected.expand(len(plans), -1, -1, -1), strict=True):
            count = plan.past - round((1 - self.temporal) * plan.past)
            stage = self._changed(view, frames, count).masked_fill(spared, -torch.inf)
            order = stage.sort(dim=-1, descending=True, stable=True)
            taken = torch.arange(view.length, device=stage.device) < count
            first = torch.zeros_like(stage, dtype=torch.bool)
            first = first.scatter(-1, order.indices, taken & ~order.values.isinf())
            found.append(torch.where(first, above + stage, measured))
        return Scored(torch.stack(found), [None] * len(plans))

    def _frames(self, view: LayerView) -> Tensor | None:
        """Positions of image tokens, int64 [frames, tokens], of two frames or more, or None."""
        if view.modality is None:
            return None
        found: Tensor | None = view.once(("frames", self.frame), lambda: self._cut(view))
        return found

    def _cut(self, view: LayerView) -> Tensor | None:
        assert view.modality is not None
        kinds = view.modality.bool().cpu()
        if not bool((kinds == kinds[:1]).all()):
            raise ValueError(
                "infinipot_v: the images of a batch lie at different tokens; give one prompt at a "
                "time."
            )
        places = kinds[0].nonzero()[:, 0]
        size = self.frame
        if size is None and len(places):
            ends = (places.diff() > 1).nonzero()[:, 0] + 1
            runs = {len(run) for run in places.tensor_split(ends.tolist())}
            size = runs.pop() if len(runs) == 1 else None
        if size is None or len(places) % size or len(places) < 2 * size:
            return None
        return places.view(-1, size).to(view.keys.device)

    def _changed(self, view: LayerView, frames: Tensor, count: int) -> Tensor:
        """How a token ranks in the first stage that takes `count`, float32 [B, Hkv, L]; -inf: not
        at all.
        """
        number, size = frames.shape
        recent = min(max(1, int(self.recent * number + 1e-9)), number - 1)
        key = ("changed", self.frame, recent)
        score: Tensor = view.once(key, lambda: _apart(view, frames, recent))
        held = recent * size if recent * size <= count else count // 2
        last = frames.flatten()[number * size - held :]
        return score.index_fill(-1, last, _RECENT)


def _apart(view: LayerView, frames: Tensor, recent: int) -> Tensor:
    """Minus the mean cosine of each earlier frame's keys with those of the last `recent` frames;
    -inf elsewhere.
    """
    units = normalize(view.keys[:, :, frames.flatten()].float(), dim=-1)
    units = units.unflatten(2, frames.shape)  # [B, Hkv, frames, tokens, d]
    earlier, later = units[:, :, :-recent], units[:, :, -recent:].mean(2, keepdim=True)
    score = torch.full(view.keys.shape[:3], -torch.inf, device=view.keys.device)
    score[..., frames[:-recent].flatten()] = -(earlier * later).sum(-1).flatten(2)
    return score
