"""How the attention of an observation window spreads over keys, and shifts from query to query.

Knows views; must not know what is made of it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .view import LayerView

_TINY = 1e-10  # what CAKE's code adds inside the logarithm


class Dispersion(NamedTuple):
    """Of the rows of a window: mean and unbiased variance of each key's attention, float32
    [B, H, L]; of one row the variance is 0.

    entropy, shift: float64 [B], over all heads and rows and the keys before the window: the sum of
    -a log a, and that of the variances.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor
    shift: Tensor


def dispersion(view: LayerView, window: int, anchor: str) -> Dispersion:
    """Computed once a view. A prompt without keys before the window counts all of them."""

    def compute() -> Dispersion:
        rows, behind = view.watched(window, anchor)
        before = (view.length - rows - behind) or view.length
        # A loop's variable would keep a part alive while the next one is made.
        parts = list(map(partial(_of_part, before), view.observed_parts(window, anchor)))
        means, variances, entropies = zip(*parts, strict=True)
        variance = torch.cat(variances, 1)
        shift = variance[..., :before].sum((1, 2), dtype=torch.float64)
        return Dispersion(torch.cat(means, 1), variance, torch.stack(entropies).sum(0), shift)

    found: Dispersion = view.once(("dispersion", window, anchor), compute)
    return found


def _of_part(before: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and entropy of the rows [B, h, W, L] of some heads."""
    past = rows[..., :before]
    entropy = -(past * (past + _TINY).log()).sum((1, 2, 3), dtype=torch.float64)
    if rows.shape[2] == 1:
        return rows[:, :, 0], torch.zeros_like(rows[:, :, 0]), entropy
    variance, mean = torch.var_mean(rows, 2)
    return mean, variance, entropy
