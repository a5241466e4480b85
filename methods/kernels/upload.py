"""Small lists of whole numbers on the device. Must not know what they mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int32 [len(numbers)] on the device, which the host does not wait for."""
    host = torch.tensor(numbers, dtype=torch.int32)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
