"""Clocks and meters of a CUDA device: how long, how much memory, and what the device can do."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SECONDS = 0.2  # spent on the repetitions of one figure
_FEWEST, _MOST = 3, 100  # repetitions
_COPY_BYTES = 2**30
_MATRIX = 8192  # rows and columns


@dataclass(frozen=True)
class Times:
    """Milliseconds: 20th percentile, median and 80th percentile of `repeats` runs."""

    p20: float
    p50: float
    p80: float
    repeats: int


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: bytes a second of a large copy (read and written bytes both count),
    and FLOPs a second of a large product of random matrices in half precision."""

    bandwidth: float
    matrix_rate: float

    def fractions(self, count_bytes: int, flops: int, ms: float) -> tuple[float, float]:
        """Part of the time that the copy, and the product, of as much would take."""
        seconds = ms / 1e3
        return count_bytes / self.bandwidth / seconds, flops / self.matrix_rate / seconds


class Clock:
    """Times work by CUDA events, each run on an L2 cache that holds nothing of it.

    The time is that of the stream from the first launch to the end of the last kernel: where the
    host launches more slowly than the device computes, it is the host's time, as a user sees it.
    """

    def __init__(self, device: torch.device) -> None:
        """Take a buffer larger than the L2 cache to flush it with."""
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * cache, 2**26), dtype=torch.int8, device=device)

    def time(self, work: Callable[[], Any]) -> Times:
        """Warm up (compile), estimate by one run, then repeat for a fifth of a second."""
        for _ in range(2):
            work()
        once = self._events(work, 1)[0]
        repeats = min(_MOST, max(_FEWEST, int(1e3 * _SECONDS / max(once, 1e-3))))
        times = self._events(work, repeats)
        p20, p50, p80 = quantiles(times)
        return Times(p20, p50, p80, repeats)

    def _events(self, work: Callable[[], Any], repeats: int) -> list[float]:
        pairs = []
        for _ in range(repeats):
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile, interpolated."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], statistics.median(times), fifths[3]


def temporary(work: Callable[[], Any]) -> int:
    """Most bytes allocated while it runs, beyond those before; results count."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def ceilings(clock: Clock, dtype: torch.dtype, device: torch.device) -> Ceilings:
    """Measure both; fp32 is held against the rate of half precision, whose units it may use."""
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    return Ceilings(_copied(clock, device), _multiplied(clock, half, device))


def _copied(clock: Clock, device: torch.device) -> float:
    size = min(_COPY_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / clock.time(lambda: target.copy_(source)).p50 * 1e3


def _multiplied(clock: Clock, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * _MATRIX**3 / clock.time(lambda: torch.matmul(a, b, out=out)).p50 * 1e3


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest |got - wanted| / (|wanted| + its mean over the row); inf where it is not a number."""
    got, wanted = got.double(), wanted.double()
    if got.shape != wanted.shape or not bool(got.isfinite().all()):
        return float("inf")
    size = wanted.abs()
    scale = (size + size.mean(-1, keepdim=True)).clamp_min(1e-30)
    return float(((got - wanted).abs() / scale).max())


def fits(temporary_bytes: int, device: torch.device) -> bool:
    """Whether as much can be allocated, with a tenth to spare."""
    torch.cuda.empty_cache()
    return temporary_bytes < 0.9 * torch.cuda.mem_get_info(device)[0]


def driver() -> str:
    """Version of the NVIDIA driver, or "unknown"."""
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def commit() -> str:
    """Commit of the code, with a + if files differ from it."""
    head = _said("git", "rev-parse", "--short", "HEAD")
    changed = _said("git", "status", "--porcelain", "--", "methods", "scripts")
    return head + "+" if changed not in ("", "unknown") else head


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
