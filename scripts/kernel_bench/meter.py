"""Costs of plain torch and of the code around kernels, seen on tensors without data.

Every operation of eager torch reads its inputs and writes its results. On meta tensors that can be
added up for any shape. It must not know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from methods.kernels.launch import recording

from .count import Count


class _Meter(TorchDispatchMode):
    """Adds up what every operation reads and writes, and watches what is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}
        self._given: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = _tensors((args, kwargs))
        self._given |= {_storage(each) for each in read} - self._alive.keys()
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        known = {_storage(each) for each in read}
        if not func._schema.is_mutable and {_storage(each) for each in made} <= known:
            return result  # another look at the same memory
        self.bytes += sum(_size(each) for each in read + made)
        for each in made:
            where = _storage(each)
            if where not in self._given:
                self._alive[where] = each.untyped_storage().nbytes()
        self._alive = {key: size for key, size in self._alive.items() if not key.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def eager(work: Callable[[], Any]) -> Count:
    """What a function of eager torch costs, run once, on meta tensors for any shape at once."""
    with FlopCounterMode(display=False) as flops, _Meter() as meter:
        result = work()
    del result
    return Count(meter.bytes, flops.get_total_flops(), meter.peak)


def held(prepare: Callable[[], Callable[[], Any]]) -> tuple[int, int] | None:
    """Bytes that the work allocates at once and kernels that it launches, as on compute capability
    9.0; None for work that waits for numbers of the device.
    """
    with recording(90) as recorder:
        try:
            work = prepare()
            work()  # makes what is made once
            recorder.launches.clear()
            return eager(work).temporary, len(recorder.launches)
        except Exception:  # what fails on real tensors as well becomes a row that says why
            return None


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _size(tensor: Tensor) -> int:
    """Bytes of the distinct elements: those that are expanded are read once."""
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= size if stride else 1
    return distinct * tensor.element_size()
