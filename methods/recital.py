"""What keys get of queries that repeat a context, in plain torch.

Knows tensors only. It must not know methods, or how a model is made to repeat anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ELEMENTS = 1 << 25  # attention weights that exist at a time


class Recited(NamedTuple):
    """The most attention that keys got while the context was repeated.

    first: tokens before those that were repeated. attention: float32 [B, H, n], of these.
    """

    first: int
    attention: Tensor


def most_attention(
    queries: Tensor, keys: Tensor, scaling: float, sinks: int, span: tuple[int, int]
) -> Tensor:
    """The most that keys of the span get of any of the queries, float32 [B, H, b - a].

    queries [B, H, q, d]; keys [B, Hkv, n + q, d], the last q of which are those of the queries. A
    softmax is over the first `sinks` keys, those of the span from a to b - 1, and what each query
    sees of the last q: other keys are left out of it.
    """
    first, end = span
    rows, heads = queries.shape[2], keys.shape[1]
    seen = torch.cat([keys[:, :, :sinks], keys[:, :, first:end], keys[:, :, -rows:]], dim=2)
    seen = seen.float().transpose(2, 3)[:, :, None]  # [B, Hkv, 1, d, m]
    grouped = queries.unflatten(1, (heads, -1))
    size = max(1, _ELEMENTS // (queries.shape[0] * queries.shape[1] * seen.shape[-1]))
    place = torch.arange(rows, device=keys.device)
    most = torch.zeros(*grouped.shape[:3], end - first, device=keys.device)
    for start in range(0, rows, size):
        part = grouped[:, :, :, start : start + size].float()
        logits = part @ seen * scaling  # [B, Hkv, g, r, m]
        later = place > place[start : start + size, None]
        logits[..., -rows:].masked_fill_(later, -torch.inf)
        shares = logits.softmax(-1)[..., sinks : sinks + end - first]
        most = torch.maximum(most, shares.amax(-2))
    return most.flatten(1, 2)
