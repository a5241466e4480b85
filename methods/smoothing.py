"""Smoothing of scores over time (the rows of the window) and space (neighbouring tokens).

Knows score tensors and windows only; it must not know where the scores come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

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


def pool(scores: Tensor, windows: Sequence[int], kind: str, kernel: int) -> Tensor:
    """Pool the scores of the first L - window tokens, for each window; float32 [windows, ..., L].

    scores [..., L]. avg counts zeros beyond the ends, max ignores them, edge is an average that
    repeats the end values. What lies inside a window is not meaningful in the result.
    """
    half = kernel // 2
    source, outside = _neighbours(scores.shape[-1], tuple(windows), half, scores.device)
    padded = scores[..., source]  # [..., windows, L + 2 * half]
    if kind != "edge":
        padded = padded.masked_fill(outside, -torch.inf if kind == "max" else 0.0)
    taps = padded.unfold(-1, kernel, 1)
    return (taps.amax(-1) if kind == "max" else taps.mean(-1)).movedim(-2, 0)


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


def pool_adaptive(
    scores: Tensor, windows: Sequence[int], kernels: Tensor, shifts: Tensor
) -> Tensor:
    """Average over a window of its own width and shift for each head; float32 [windows, B, H, L].

    scores [B, H, L]; kernels and shifts [windows, B, H]. A positive shift averages over higher
    positions. End values are repeated.
    """
    length = scores.shape[-1]
    half = kernels // 2
    reach = int((half + shifts.abs()).max())
    source, _ = _neighbours(length, tuple(windows), reach, scores.device)
    padded = scores[..., source].movedim(-2, 0)  # [windows, B, H, L + 2 * reach]
    offsets = torch.arange(-reach, reach + 1, device=scores.device)
    inside = (offsets - shifts[..., None]).abs() <= half[..., None]
    weights = inside / kernels[..., None].float()  # [windows, B, H, 2 * reach + 1]
    # One pass a tap: unfolding instead would need the widest window for every token at once.
    pooled = padded[..., :length] * weights[..., :1]
    for tap in range(1, 2 * reach + 1):
        pooled.addcmul_(padded[..., tap : tap + length], weights[..., tap : tap + 1])
    return pooled


@lru_cache(maxsize=64)
def _neighbours(
    length: int, windows: tuple[int, ...], half: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions -half..L + half - 1 moved into the candidate range, and where that changed them."""
    position = torch.arange(-half, length + half)
    last = torch.tensor([length - window - 1 for window in windows])[:, None]
    source = position.clamp(min=0).minimum(last)
    return source.to(device), (source != position).to(device)
