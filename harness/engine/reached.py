"""Which entries attention needs most: the fewest that reach a share of its mass.

Must not know where entries are stored or how they get there.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 64  # query rows that are worked on together


def masses(
    query: Tensor, keys: Tensor, places: Tensor, token: Tensor, new: int, scaling: float
) -> Tensor:
    """Mean attention to each entry of its sequence, float64 [S, n]; each row sums to 1.

    query [S, g * new, d], whose row r is of token + r % new, int64 [1]; keys [S, n, d]; places
    int64 [S, n], -1 where there is no entry. Each row sees an entry at least, its own.
    """
    rows = query.shape[1]
    total = keys.new_zeros(keys.shape[:2], dtype=torch.float64)
    for first in range(0, rows, _ROWS):
        part = query[:, first : first + _ROWS].float()
        own = token + (torch.arange(part.shape[1], device=token.device) + first) % new
        hidden = (places < 0)[:, None] | (places[:, None] > own[:, None])  # [S, rows, n]
        logits = (part @ keys.float().mT * scaling).masked_fill_(hidden, -torch.inf)
        total += logits.double().softmax(-1).sum(1)
    return total / rows


def fewest(masses: Tensor, here: Tensor, share: float) -> Tensor:
    """The fewest entries that with those `here` reach the share of all masses, bool like `masses`.

    masses float64 [C, n] of each cell; here bool [C, n]: entries that are read in any case. What
    has no mass is never chosen.
    """
    ranked, order = masses.masked_fill(here, -1.0).sort(stable=True, dim=-1, descending=True)
    ranked = ranked.clamp_min(0)
    mine = masses.masked_fill(~here, 0.0).sum(-1, keepdim=True)
    before = mine + ranked.cumsum(-1) - ranked
    taken = (before < share * masses.sum(-1, keepdim=True)) & (ranked > 0)
    return torch.zeros_like(here).scatter_(-1, order, taken)
