"""Small tensors of the host on the device. Must not know what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int32 [len(numbers)] on the device, which the host does not wait for."""
    return shared(torch.tensor(numbers, dtype=torch.int32), device)


def send(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the copy is queued, not waited for."""
    if device.type != "cuda":
        return host.to(device)
    # A graph would copy from this place in memory again, whatever is there by then.
    assert not torch.cuda.is_current_stream_capturing()
    return host.pin_memory().to(device, non_blocking=True)


def shared(host: Tensor, device: torch.device) -> Tensor:
    """The same, sent once for equal contents, which must stay as they are.

    What one layer asks for most others ask for as well, and at every step.
    """
    if device.type != "cuda":
        return host.to(device)
    return _sent(host.numpy().tobytes(), host.shape, host.dtype, device)


@lru_cache(maxsize=128)
def _sent(data: bytes, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype, device=device)
    return send(torch.frombuffer(bytearray(data), dtype=dtype).view(shape), device)
