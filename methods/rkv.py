"""R-KV (arXiv 2505.24133): what the last queries attend to, less what many keys repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from .checks import (
    BUFFER,
    WINDOW,
    require,
    require_count,
    require_decode,
    require_flag,
    require_number,
)
from .holding import Step
from .policy import Plan, Scored
from .view import PART_BYTES, LayerView
from .windowed import WindowPolicy

_TINY = 1e-8  # what the released code adds to the length of a key


@dataclass(frozen=True, kw_only=True)
class RKV(WindowPolicy):
    """Score a token by mix * importance - (1 - mix) * redundancy.

    importance: for each query of the window and each KV head the largest logit of its query heads,
    softmax over the tokens before the protected window, the mean over the queries, then the maximum
    over `kernel` neighbours (odd). redundancy: softmax over all tokens of the mean cosine between a
    key and each key of its head; a key takes no part in its own mean, nor in that of the newest key
    whose cosine with it is above `threshold`, so that the newest of many alike counts as unlike.

    decode: buffer evicts whenever `buffer` tokens are over the budget, as published, by the keys in
    the cache and the last `window` queries, whichever read them; hold after every token; grow
    selects once, after the prompt.

    The released code (Zefan-Cai/R-KV at d15c976) gives mix=0.07 where paper and README say 0.1. Of
    a key that no other is like it takes the first token's part away, as if that were the newest one
    alike, which makes the first token less redundant: so does official=True. It stores what it
    keeps in the order of scores, in which later evictions look for neighbours and for the newest
    key; here that is the order of the tokens. It evicts where the length of all that it has read
    since it was loaded is a multiple of 128, keeps the prompts after the first one whole until
    then, and reads the cosines of the first of a batch for all; its retain_ratio takes effect
    nowhere.
    """

    name: ClassVar[str] = "rkv"
    title: ClassVar[str] = "R-KV"
    spans_layers: ClassVar[bool] = True
    window: int = 8
    kernel: int = 7
    mix: float = 0.1
    threshold: float = 0.5
    official: bool = False
    decode: str = "buffer"
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_decode(self)
        require_count(self.name, "kernel", self.kernel, 1, WINDOW)
        require(self.kernel % 2 == 1, self.name, "kernel", self.kernel, "an odd number")
        require_number(self.name, "mix", self.mix, 0, 1)
        require_number(self.name, "threshold", self.threshold, 0, 1)
        require_flag(self.name, "official", self.official)
        allowed = "a rule that takes scores below zero, as most of these are"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    @property
    def comparable(self) -> bool:
        """Importance is a share of attention and redundancy one of a head's."""
        return True

    @property
    def recalls(self) -> int:
        """The window goes on while decoding."""
        return self.window if self.period else 0

    def measure(self, view: LayerView) -> Tensor:
        """The redundancy of every key."""
        held = torch.ones((), dtype=torch.bool, device=view.keys.device)
        return self._redundancy(view.keys, held.expand(view.keys.shape[:3]))

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Weigh it against the importance of what lies before each protected window."""
        logits = view.logits(self.window, self.window_anchor)
        logits = logits.unflatten(1, (view.kv_heads, -1)).amax(2)  # [B, Hkv, rows, L]
        place = torch.arange(view.length, device=logits.device).expand_as(measured)
        scores = [
            self._joint(logits, measured, place < view.length - plan.window) for plan in plans
        ]
        return Scored(torch.stack(scores), [None] * len(plans))

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """The same of the entries in the order of their tokens, the last `window` tokens above."""
        assert step.keys is not None
        assert step.queries is not None
        place = torch.where(step.positions < 0, step.seen, step.positions)
        place, order = place.sort(dim=-1, stable=True)  # entries that are none at the end
        held = place < step.seen
        keys = step.keys.gather(2, order[..., None].expand_as(step.keys)).float()
        keys = keys.masked_fill(~held[..., None], 0.0)
        queries = step.queries.unflatten(1, (keys.shape[1], -1))  # [C, Hkv, g, w, d]
        logits = (queries @ keys[:, :, None].transpose(-1, -2)).amax(2)  # [C, Hkv, w, n]
        reader = torch.arange(step.seen - logits.shape[2], step.seen, device=place.device)
        logits = logits.masked_fill(place[:, :, None] > reader[:, None], -torch.inf)
        fits = step.budgets > self.window
        window = torch.where(fits, self.window, step.budgets // 2)[..., None]
        past = place < step.seen - window
        scores = self._joint(logits, self._redundancy(keys, held), past)
        scores = torch.where(past, scores, torch.inf)
        return torch.empty_like(scores).scatter_(-1, order, scores)

    def _joint(self, logits: Tensor, redundancy: Tensor, past: Tensor) -> Tensor:
        """Scores of logits [B, Hkv, w, L] and redundancy [B, Hkv, L] where they are `past`."""
        logits = logits.masked_fill(~past[:, :, None], -torch.inf)
        # A query that is older than all that is left pays nothing.
        older = logits.amax(-1, keepdim=True) == -torch.inf
        rows = logits.masked_fill(older, 0.0).softmax(-1).masked_fill(older, 0.0)
        paid = max_pool1d(rows.mean(2), self.kernel, 1, self.kernel // 2)
        return self.mix * paid - (1 - self.mix) * redundancy

    def _redundancy(self, keys: Tensor, held: Tensor) -> Tensor:
        """float32 [B, Hkv, L] of keys [B, Hkv, L, d], 0 where they are not held; part by part, as
        all cosines of a long prompt would take more memory than its cache.
        """
        unit = keys.float()
        unit = unit / (unit.norm(dim=-1, keepdim=True) + _TINY)
        batch, heads, length = held.shape
        place = torch.arange(length, device=keys.device)
        total = torch.zeros(held.shape, device=keys.device)
        for some in place.split(max(1, PART_BYTES // (16 * batch * heads * length))):
            cosine = unit[:, :, some] @ unit.transpose(2, 3)  # [B, Hkv, some, L]
            cosine.masked_fill_(place == some[:, None], 0.0)
            newest = torch.where(cosine > self.threshold, place, -1).amax(-1, keepdim=True)
            rest = cosine.gather(-1, newest.clamp_min(0))
            gone = torch.ones_like(newest, dtype=torch.bool) if self.official else newest >= 0
            cosine.scatter_(-1, newest.clamp_min(0), torch.where(gone, 0.0, rest))
            total += cosine.sum(2)
        mean = total / held.sum(-1, keepdim=True)
        return mean.masked_fill(~held, -torch.inf).softmax(-1)
