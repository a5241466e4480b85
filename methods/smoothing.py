"""Smoothing of scores over time (the rows of the window) and space (neighbouring tokens).

Knows score tensors and windows only; it must not know where the scores come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from .kernels import mean_top_positions, send
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
    return send(weights.float(), device)


def drift(attention: Tensor | Iterable[Tensor], counts: Sequence[int]) -> Tensor:
    """How far back the attended tokens moved within the window, in tokens; float64 [counts, B, H].

    For each count: mean position of the `count` most attended keys over the first half of the rows
    of attention [B, H, W, L], minus the same over the rest (arXiv 2605.08840, with the released
    code's sign). Ties go to the lower position. 0 where there are fewer than two rows.

    attention may also come in parts [B, some heads, W, L], in the order of the heads: of those
    that a generator makes, only one exists at a time.
    """
    parts = [attention] if isinstance(attention, Tensor) else attention
    # A loop's variable would keep a part alive while the next one is made.
    each = map(partial(mean_top_positions, counts=counts), parts)
    means = torch.cat([some.movedim(0, -1) for some in each], 1)  # [B, H, W, counts]
    front = means.shape[2] // 2
    if front == 0:
        return torch.zeros_like(means[:, :, 0]).movedim(-1, 0)
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
