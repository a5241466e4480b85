"""Smoothing of scores over time (the rows of the window) and space (neighbouring tokens).

Knows score tensors and windows only; it must not know where the scores come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .kernels import pool as pool
from .kernels import pool_adaptive as pool_adaptive

TEMPORAL = ("ema", "mean", "last", "ema_reversed")


@lru_cache(maxsize=64)
def temporal_weights(kind: str, rows: int, alpha: float, device: torch.device) -> Tensor:
    """Weight of each of the last `rows` queries, oldest first, float32 [rows], summing to 1.

    ema: an exponential moving average that starts from the oldest row with weight 1, so the weights
    are (1 - alpha)^(rows - 1), then alpha (1 - alpha)^(rows - 1 - i). ema_reversed: the same from
    the newest row backwards. mean: all equal. last: only the newest row.
    """
    if kind == "mean":
        weights = torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    elif kind == "last":
        weights = torch.zeros(rows, dtype=torch.float64)
        weights[-1] = 1.0
    else:
        age = torch.arange(rows - 1, -1, -1, dtype=torch.float64)
        weights = alpha * (1.0 - alpha) ** age
        weights[0] = (1.0 - alpha) ** (rows - 1)
        if kind == "ema_reversed":
            weights = weights.flip(0)
    return weights.float().to(device)


def drift(attention: Tensor, counts: Sequence[int]) -> Tensor:
    """How far back the attended tokens moved within the window, in tokens; float64 [counts, B, H].

    For each count: mean position of the `count` most attended keys over the first half of the rows
    of attention [B, H, W, L], minus the same over the rest (arXiv 2605.08840, with the released
    code's sign). Ties go to the lower position. 0 where there are fewer than two rows.
    """
    batch, heads, rows, _ = attention.shape
    front = rows // 2
    if front == 0:
        return torch.zeros(len(counts), batch, heads, dtype=torch.float64, device=attention.device)
    # Stable, because keys a row cannot see tie at zero and a small count may not avoid them.
    order = attention.sort(dim=-1, descending=True, stable=True).indices[..., : max(counts)]
    last = torch.tensor(counts, device=attention.device) - 1
    sums = order.cumsum(-1)[..., last].double()  # [B, H, W, counts]
    means = sums / (last + 1)
    return (means[:, :, :front].mean(2) - means[:, :, front:].mean(2)).movedim(-1, 0)


def adaptive_windows(
    moved: Tensor, scale: float, kernel: int, official: bool = False
) -> tuple[Tensor, Tensor]:
    """Width and shift in tokens of each averaging window, two int64 tensors shaped like `moved`.

    With s = floor(|moved| / scale) the window is max(kernel, 2 s + 1) wide and moves by s towards
    the sign of `moved`. official: as in the released code, shifts are one higher at 0 and at exact
    negative multiples of the scale, and batch item 0 decides for the whole batch.
    """
    if official:
        moved = moved[:, :1].expand_as(moved).float()
        whole = moved.div(scale, rounding_mode="floor")
        shifts = torch.where(moved > 0, whole, whole + 1)
    else:
        shifts = moved.div(scale, rounding_mode="trunc")
    steps = moved.abs().div(scale, rounding_mode="floor")
    return (2 * steps + 1).clamp_min(kernel).long(), shifts.long()
