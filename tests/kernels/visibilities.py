"""Every way to say which keys all L queries see, and what it means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.kernels.oracles import DEVICE, causal, draw

KINDS = ("causal", "mask", "batch_of_masks", "one_row", "blind", "all_blind", "nothing_blind")


def visibility(kind: str, length: int) -> tuple[dict[str, Any], Tensor]:
    """The options of an operation and bool, broadcastable to [2, 1, L, L]."""
    lower = causal(length, length)
    position = torch.arange(length, device=DEVICE)
    if kind == "mask":  # causal with a block that sees itself, as images do
        mask = lower | (position[:, None] < 90) & (position < 90)
        return {"mask": mask}, mask
    if kind == "batch_of_masks":
        mask = (draw(2, 1, length, length, seed=5) > 0.3) | (position == position[:, None])
        return {"mask": mask}, mask
    if kind == "one_row":
        mask = (position % 3 != 1)[None, None, None]
        return {"mask": mask}, mask
    if kind == "causal":
        return {}, lower
    blind = {"blind": 9, "all_blind": length + 1, "nothing_blind": 0}[kind]
    return {"blind": blind}, lower | (position[:, None] < length - blind)
