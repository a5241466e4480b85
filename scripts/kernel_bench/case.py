"""What is measured: an operation, what it is compared with, and its check.

Knows nothing of any operation, nor of how a time is taken. `shape` and `source` are whatever a
suite draws its tensors from and into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .count import Count

Work = Callable[[], Any]

# Largest error (measure.error) by the dtype of keys and values.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# What rounds logits to half precision before the softmax, as eager attention does, gets more.
EAGER_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Baseline:
    """Another way to the result.

    prepare: (shape, source) -> what is timed. alike: its result is checked as the operation's.
    counted: plain torch that runs on meta tensors, so that its cost can be counted. key: baselines
    of one key and source are the same work.
    """

    prepare: Callable[[Any, Any], Work]
    alike: bool = True
    counted: bool = False
    key: str = ""


@dataclass(frozen=True)
class Operation:
    """count: cost from the shape. prepare: (shape, source) -> what is timed. check: (shape, source,
    result) -> error against the published formula in float64. tolerance: None = by dtype. applies:
    whether the operation does anything on a shape.
    """

    name: str
    count: Callable[[Any], Count]
    prepare: Callable[[Any, Any], Work]
    check: Callable[[Any, Any, Any], float]
    baselines: dict[str, Baseline] = field(default_factory=dict)
    tolerance: float | None = None
    applies: Callable[[Any], bool] = lambda _shape: True

    def allowed(self, dtype: torch.dtype) -> float:
        """Largest error of a right result."""
        return TOLERANCE[dtype] if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Suite:
    """Operations that share their tensors.

    draw: (shape, dtype, device) -> source. shapes: (models, lengths, itemsize) -> shapes. small:
    shapes for checks without a GPU.
    """

    name: str
    operations: tuple[Operation, ...]
    draw: Callable[[Any, torch.dtype, torch.device], Any]
    shapes: Callable[[list[str], list[int], int], list[Any]]
    small: tuple[Any, ...]
