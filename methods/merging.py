"""Merging what is evicted into what stays (LOOK-M, arXiv 2406.18139).

Knows keys, values and positions; must not know who chose them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NONE = "none"
MERGES = ("average", "pivot", "weighted")
_ELEMENTS = 1 << 24  # of similarities that exist at a time: 64 MiB


def merged(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    how: str,
    evicted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the kept entries become: keys [Hkv, n, d] and values [Hkv, n, dv], in their dtypes.

    keys [Hkv, L, d] and values [Hkv, L, dv] of a prompt; positions int64 [Hkv, n], what each head
    keeps, -1 at its end where it keeps fewer (these entries mean nothing). evicted: bool [Hkv, L],
    what is merged; None: all that is not kept.

    Each evicted token goes, key and value, to the kept token whose key is most similar to its own
    by cosine, the first of equals. A kept entry and the N that come to it become their mean, where
    those that come are: average = themselves; pivot = their mean with the kept entry; weighted =
    themselves times the similarity. Sums are float32.
    """
    heads, length = keys.shape[:2]
    present, place = positions >= 0, positions.clamp_min(0)
    if evicted is None:
        stays = torch.zeros(heads, length + 1, dtype=torch.bool, device=keys.device)
        evicted = ~stays.scatter(1, torch.where(present, place, length), True)[:, :length]
    own = [each.float().gather(1, _rows(place, each)) for each in (keys, values)]
    units = normalize(own[0], dim=-1)
    sums = [torch.zeros_like(each) for each in own]
    count = torch.zeros(heads, positions.shape[1], 1, device=keys.device)
    step = max(1, _ELEMENTS // (heads * positions.shape[1]))
    for first in range(0, length, step):
        part = slice(first, first + step)
        similar = normalize(keys[:, part].float(), dim=-1) @ units.transpose(1, 2)  # [Hkv, l, n]
        best, nearest = similar.masked_fill(~present[:, None], -torch.inf).max(-1)
        # Products with the choices, since scattered sums come out in any order on a GPU.
        chosen = torch.zeros_like(similar).scatter_(2, nearest[..., None], 1.0)
        chosen *= evicted[:, part, None]
        count += chosen.sum(1)[..., None]
        if how == "weighted":
            chosen *= best[..., None]
        for total, states in zip(sums, (keys, values), strict=True):
            total += chosen.transpose(1, 2) @ states[:, part].float()
    half = 0.5 if how == "pivot" else 1.0
    kept = 1.0 + 0.5 * count if how == "pivot" else 1.0
    mixed = [
        (each * kept + half * total) / (1 + count) for each, total in zip(own, sums, strict=True)
    ]
    return mixed[0].to(keys.dtype), mixed[1].to(values.dtype)


def _rows(place: Tensor, states: Tensor) -> Tensor:
    """Indices of whole rows, int64 [Hkv, n, d]."""
    return place[..., None].expand(-1, -1, states.shape[-1])
