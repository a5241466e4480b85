"""Whether an operation runs as its Triton kernel, and how one is launched.

Knows devices, dtypes and launch parameters; must not know what any kernel computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

# Triton 3.9 warns unless this is said; fused multiply-adds are its default until then.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch comes without it
    triton = tl = None

KERNELS = ("auto", "triton", "torch")
MOST_DIMS = 256  # of a head
LOG2_E = 1.4426950408889634  # exp(x) = exp2(LOG2_E * x), and exp2 is what the hardware has
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROOMIEST = (90, 100, 103)  # compute capabilities x 10 with 227 KiB of shared memory a block
_OLDEST = 80  # compute capability x 10

_wanted: ContextVar[str] = ContextVar("evictbench_kernels", default="auto")
_recorder: ContextVar[Recorder | None] = ContextVar("evictbench_recorder", default=None)


def jit(function: Callable[..., Any] | None = None, *, varying: Sequence[str] = ()) -> Any:
    """triton.jit, or the function itself where there is no Triton to run it.

    varying: whole numbers that change from call to call, for which nothing is compiled anew.
    """
    if function is None:
        return lambda function: jit(function, varying=varying)
    if triton is None:
        return function
    return triton.jit(do_not_specialize=list(varying))(function)


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """Choose who computes until the block ends.

    auto: Triton on a CUDA device, plain torch elsewhere; triton: Triton or an error, with
    TRITON_INTERPRET=1 also on the CPU; torch: plain torch everywhere. ValueError for another name.
    """
    _check_name(kernels)
    token = _wanted.set(kernels)
    try:
        yield
    finally:
        _wanted.reset(token)


def require(kernels: str, device: torch.device) -> None:
    """ValueError, one sentence, unless this choice exists and can run on this device."""
    _check_name(kernels)
    if kernels == "triton" or (kernels == "auto" and device.type == "cuda"):
        _check_device(device)


def _check_name(kernels: str) -> None:
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r} is unknown; choose one of {', '.join(KERNELS)}.")


def interpreted() -> bool:
    """Whether kernels were decorated for Triton's interpreter."""
    return triton is not None and not isinstance(_probe, triton.runtime.JITFunction)


def by_triton(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors [..., head_dim] runs as its Triton kernel.

    ValueError, one sentence, where it should and cannot: no silent fallback.
    """
    wanted, device = _wanted.get(), tensors[0].device
    if wanted == "torch":
        return False
    if _recorder.get() is None:
        if wanted == "auto" and device.type != "cuda":
            return False
        _check_device(device)
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"the kernels take float32, float16 and bfloat16, not {tensor.dtype}; convert the "
                "tensors or use kernels=torch."
            )
        if not 1 <= tensor.shape[-1] <= MOST_DIMS:
            raise ValueError(
                f"the kernels take a head_dim of 1 to {MOST_DIMS}, not {tensor.shape[-1]}; use "
                "kernels=torch."
            )
    return True


def _check_device(device: torch.device) -> None:
    if triton is None:
        raise ValueError("the kernels need the package triton; install it or use kernels=torch.")
    if device.type == "cuda":
        if torch.version.hip is None and capability(device) < _OLDEST:
            raise ValueError(
                f"the kernels need compute capability 8.0, not {capability(device) / 10}; use "
                "kernels=torch."
            )
    elif not interpreted():
        raise ValueError(
            f"the kernels run on a CUDA device, not on {device.type}; use kernels=torch, or set "
            "TRITON_INTERPRET=1 before the program starts."
        )


def capability(device: torch.device) -> int:
    """Compute capability x 10 that launch parameters are chosen for; 90 without a GPU."""
    recorder = _recorder.get()
    if recorder is not None:
        return recorder.capability
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; on record 132, those of an H100.

    Few in the interpreter, which runs one program after the other.
    """
    if _recorder.get() is not None:
        return 132
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel must widen what it loads: the interpreter's bfloat16 arithmetic is wrong."""
    return dtype == torch.bfloat16 and interpreted() and _recorder.get() is None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """kernel[grid](*args, **options) on the device of the tensors, or on record (`recording`)."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.launches.append((kernel, args, options))
        return
    device = next(each.device for each in args if isinstance(each, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **options)
    else:
        kernel[grid](*args, **options)


class Recorder:
    """Launches as they would be on a GPU of this compute capability x 10."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launches: list[tuple[Any, Sequence[Any], dict[str, Any]]] = []


@contextmanager
def recording(capability: int) -> Iterator[Recorder]:
    """Note launches in place of running them; operations are then called on meta tensors."""
    recorder = Recorder(capability)
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


@jit
def _probe():  # what `jit` makes of a function tells whether Triton interprets
    pass
