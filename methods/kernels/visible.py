"""Which keys the queries of a window may see. Must not know what is done with them."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(
    rows: int, length: int, behind: int, mask: Tensor | None, device: torch.device
) -> Tensor:
    """bool, broadcastable to [B, 1, rows, L]; causal unless there is a mask.

    The queries are the last `rows` of the `length` positions that have `behind` more behind them.
    """
    if mask is not None:
        return mask
    position = torch.arange(length, device=device)
    return (position <= position[length - behind - rows : length - behind, None])[None, None]
