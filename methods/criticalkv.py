"""CriticalKV (arXiv 2502.03805): half by attention, half by attention times projected values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require, require_number
from .policy import Plan, Scored, over_group
from .snapkv import SnapKV
from .view import LayerView

_BLOCK_ELEMENTS = 1 << 25  # float32 elements of the largest temporary on a GPU: 128 MiB
_CACHED = 1 << 18  # on a CPU 1 MiB, which stays near until it is summed


@dataclass(frozen=True, kw_only=True)
class CriticalKV(SnapKV):
    """Choose by SnapKV's score a, then fill up by (a + epsilon) * || W_O v ||_1.

    a is the mean of the window's attention rows, not their sum, pooled as in SnapKV. Needs
    LayerView.output_weight.

    first_stage: fraction of the budget that a alone decides, protected tokens not counted (NVIDIA's
    kvpress counts them). epsilon: what lets tokens that nothing attends to differ by their values.
    group: as in SnapKV, also for the norms, each query head having its own part of W_O.

    budget=adaptive is refused: tokens of the first stage rank above all others of their own head,
    whatever the other heads hold.
    """

    name: ClassVar[str] = "criticalkv"
    title: ClassVar[str] = "CriticalKV"
    comparable_if: ClassVar[str] = ""
    value_norm: bool = field(default=False, init=False)
    first_stage: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_number(self.name, "first_stage", self.first_stage, 0, 1)
        require_number(self.name, "epsilon", self.epsilon, 1e-12, 1)
        allowed = "uniform or pyramid, as scores of two stages cannot be pooled across heads"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    @property
    def comparable(self) -> bool:
        """Scores of two stages are not, and projected values have the scale of their layer."""
        return False

    def measure(self, view: LayerView) -> Tensor:
        """Column means of the window's attention rows, one for each KV head."""
        return super().measure(view) / self.rows(view)

    def plan(self, view: LayerView, count: int) -> Plan:
        """The window is protected; the first stage takes its share of what is kept besides."""
        plan = self.bounded(super().plan(view, count), count)
        return plan._replace(past=max(0, count - self.fixed(view, plan)))

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Second-stage scores, and above them those of the first stage's tokens."""
        base, adaptive = super().rescore(view, measured, plans)  # [plans, B, Hkv, L]
        protected = self._protection(view, plans)
        if protected is not None:  # below every candidate, none of which is negative
            base = base.masked_fill(protected, -1.0)
        second = (base + self.epsilon) * over_group(self._norms(view), view.kv_heads, self.group)
        order = base.sort(dim=-1, descending=True, stable=True).indices
        # 1e-9: 0.58 of 50 is 29, and less in binary.
        taken = [math.floor(self.first_stage * plan.past + 1e-9) for plan in plans]
        rank = torch.arange(view.length, device=base.device)
        ahead = rank < torch.tensor(taken, device=base.device)[:, None, None, None]
        first = torch.zeros_like(base, dtype=torch.bool).scatter(-1, order, ahead.expand_as(base))
        # Twice the largest and 1, since adding 1 alone may round away.
        above = 2.0 * second.amax(-1, keepdim=True) + 1.0
        return Scored(torch.where(first, base + above, second), adaptive)

    def _norms(self, view: LayerView) -> Tensor:
        if view.output_weight is None:
            raise ValueError(
                "criticalkv: needs the weight of the output projection and the view has none; pass "
                "LayerView.output_weight or choose snapkv."
            )
        weight = view.output_weight
        norms: Tensor = view.once("projected_l1", lambda: _projected_l1(view, weight))
        return norms


def _projected_l1(view: LayerView, weight: Tensor) -> Tensor:
    """|| W_O,h v_j ||_1 of every query head h and token j, float32 [B, H, L].

    All heads and a block of tokens at a time: the temporary has the hidden size C.
    """
    heads = view.queries.shape[1]
    parts = weight.unflatten(1, (heads, -1)).permute(1, 2, 0).float()  # [H, dv, C]
    most = _BLOCK_ELEMENTS if weight.is_cuda else _CACHED
    size = max(1, most // (heads * weight.shape[0]))
    norms = []
    for values in view.values.repeat_interleave(heads // view.kv_heads, 1):  # [H, L, dv]
        blocks = values.float().split(size, 1)
        norms.append(torch.cat([torch.bmm(block, parts).abs_().sum(-1) for block in blocks], 1))
    return torch.stack(norms)
