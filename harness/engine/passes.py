"""Forward passes of a model, and the time that they take.

It must not know eviction methods, prompts or cells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.layout import Layout


def forward(
    model: PreTrainedModel, layout: Layout, cache: Cache, positions: Tensor, **inputs: Tensor
) -> Tensor:
    """Logits [B, V] after the last token, through the model's own forward."""
    keep = {"logits_to_keep": 1} if layout.keeps_logits else {}
    output = model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True, **keep)
    return output.logits[:, -1]


def sees_later(mask: Tensor) -> bool:
    """Whether some of the last tokens sees a later one, mask [1, 1, q, n]."""
    return bool(mask[0, 0].triu(1 + mask.shape[-1] - mask.shape[-2]).any())


def clock(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Adds up the time of many short pieces of work without waiting for the device in between."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the work that is given to the device within the block."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            yield
            end.record(torch.cuda.current_stream(device))
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """The total, after the device has finished."""
        for _, end in self._events[-1:]:
            end.synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3
