"""Measuring a suite on a GPU: each operation checked, timed, and compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch

from methods.kernels.launch import triton

from . import measure
from .apart import Lost, Worker
from .case import EAGER_TOLERANCE, Baseline, Operation, Suite, Work
from .count import Count
from .meter import eager, held
from .rows import Row
from .shapes import DTYPES

_SECONDS = 120.0  # the longest wait for a figure


class Bench:
    """Measures figures on a CUDA device, in this process.

    common: what holds of all of them.
    """

    def __init__(self, suite: Suite, dtype: str, device: torch.device) -> None:
        """Measure what the device can do at all."""
        self.suite = suite
        self.dtype = DTYPES[dtype]
        self.device = device
        self.clock = measure.Clock(self.device)
        self.ceilings = measure.ceilings(self.clock, self.dtype, self.device)
        self.shape: Any = None
        self.source: Any = None
        self.shared: dict[str, Any] = {}  # figures of baselines that operations share
        self.common: Row = {
            "device": torch.cuda.get_device_name(self.device),
            "dtype": dtype,
            "bandwidth_gb_s": self.ceilings.bandwidth / 1e9,
            "matrix_tflop_s": self.ceilings.matrix_rate / 1e12,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "driver": measure.driver(),
            "commit": measure.commit(),
        }

    def figure(self, row: Row, shape: Any) -> Row:
        """The row of an operation on a shape with what was measured, or with why it was not."""
        (operation,) = (each for each in self.suite.operations if each.name == row["operation"])
        row = dict(row)
        try:
            torch.cuda.empty_cache()
            self.fill(row, operation, shape, self._source(shape))
        except torch.OutOfMemoryError:
            row.update(verdict="no memory", why="no memory")
        except Exception as error:
            row.update(verdict="failed", why=_sentence(error))
        return row

    def _source(self, shape: Any) -> Any:
        """The tensors of a shape, drawn once while figures of it follow one another."""
        if shape != self.shape:
            self.shape = self.source = None  # free the last ones first
            self.shared = {}
            self.source = self.suite.draw(shape, self.dtype, self.device)
            self.shape = shape
        return self.source

    def alive(self) -> bool:
        """Whether the device still works for this process, which it does not after some errors."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError:  # as torch says every error of a device
            return False
        return True

    def fill(self, row: Row, operation: Operation, shape: Any, source: Any) -> None:
        """Check, then time, then the same for the baselines."""
        why = self._measure(row, "", operation.prepare, operation, shape, source)
        if why:
            row["verdict"], row["why"] = "no memory" if why == "no memory" else "failed", why
            return
        row["tolerance"] = operation.allowed(self.dtype)
        if not row["error"] <= row["tolerance"]:
            row["verdict"] = "wrong"
        memory, matrix = self.ceilings.fractions(row["bytes"], row["flops"], row["ms"])
        row.update(memory_roofline=memory, matrix_roofline=matrix, roofline=max(memory, matrix))
        for name, baseline in operation.baselines.items():
            row.update(self.baseline(name, baseline, operation, shape, source))
            # No speedup of a wrong result, or over one.
            right = row["verdict"] == "ok" and not row.get(f"{name}_note")
            word = "speedup" if baseline.alike else "ratio"
            row[f"{word}_{name}"] = row[f"{name}_ms"] / row["ms"] if right else None

    def baseline(
        self, name: str, baseline: Baseline, operation: Operation, shape: Any, source: Any
    ) -> Row:
        """Its figures, each named after it; a note says why there are none or none to compare."""
        if baseline.key in self.shared:
            return self.shared[baseline.key]
        row: Row = {}
        if baseline.counted:
            count = counted(self.suite, baseline, shape, self.dtype)
            row.update(costs(name, count))
            if not measure.fits(count.temporary, self.device):
                row[f"{name}_note"] = f"needs {count.temporary / 1e9:.0f} GB"
                return row
        judge = operation if baseline.alike else None
        why = self._measure(row, f"{name}_", baseline.prepare, judge, shape, source)
        loose = max(EAGER_TOLERANCE[self.dtype], operation.allowed(self.dtype))
        if not why and judge and not row[f"{name}_error"] <= loose:
            why = "wrong"
        if why:
            row[f"{name}_note"] = why
        if baseline.key:
            self.shared[baseline.key] = row
        return row

    def _measure(
        self,
        row: Row,
        prefix: str,
        prepare: Callable[[Any, Any], Work],
        judge: Operation | None,
        shape: Any,
        source: Any,
    ) -> str:
        """Error, times and memory into the row; why not, or an empty string."""
        try:
            work = prepare(shape, source)
            if judge is not None:
                row[f"{prefix}error"] = judge.check(shape, source, work())
            times = self.clock.time(work)
            row.update({f"{prefix}ms": times.p50, f"{prefix}ms_p20": times.p20})
            row.update({f"{prefix}ms_p80": times.p80, f"{prefix}repeats": times.repeats})
            row[f"{prefix}temporary_bytes"] = measure.temporary(work)
            return ""
        except torch.OutOfMemoryError:
            return "no memory"
        except Exception as error:
            return _sentence(error)


class Apart:
    """Measures as a Bench does, in a process of its own, and in a new one when that is lost.

    Lost, from the start, where no such process can measure anything.
    """

    def __init__(self, suite: Suite, dtype: str) -> None:
        """Start the first."""
        self._make = partial(_answering, suite.name, dtype)
        self._worker: Worker | None = None
        self.common: Row = self._ask()

    def figure(self, row: Row, shape: Any) -> Row:
        """As Bench.figure; losing the process costs this one figure."""
        if self._worker is None:
            self._ask()
        try:
            row, alive = self._ask(row, shape)
        except Lost as lost:
            self._worker = None
            return {**row, "verdict": "failed", "why": str(lost)}
        if not alive:
            self.close()
        return row

    def close(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _ask(self, *asked: Any) -> Any:
        if self._worker is None:
            self._worker = Worker(self._make, _SECONDS)
        return self._worker(*asked)


def _answering(suite: str, dtype: str) -> Callable[..., Any]:
    """What a process measures with: () -> common facts, (row, shape) -> row, device alive."""
    named = {"kernels": "operations", "decode": "decode"}[suite]
    found: Suite = import_module(f"scripts.kernel_bench.{named}").SUITE
    torch.backends.cuda.matmul.allow_tf32 = False  # references are float32 or wider
    torch.set_grad_enabled(False)
    bench = Bench(found, dtype, torch.device("cuda", torch.cuda.current_device()))

    def answer(*asked: Any) -> Any:
        return (bench.figure(*asked), bench.alive()) if asked else bench.common

    return answer


def needs(suite: Suite, operation: Operation, shape: Any, dtype: torch.dtype) -> Row:
    """Counts of an operation as entries of a row."""
    count = operation.count(shape)
    source = suite.draw(shape, dtype, torch.device("meta"))
    found = held(lambda: operation.prepare(shape, source)) if triton else None
    temporary, launches = found or (count.temporary, None)
    return {
        "bytes": count.bytes,
        "flops": count.flops,
        "temporary_counted": temporary,
        "launches": launches,
    }


def counted(suite: Suite, baseline: Baseline, shape: Any, dtype: torch.dtype) -> Count:
    """Cost of a baseline in plain torch, on tensors without data."""
    source = suite.draw(shape, dtype, torch.device("meta"))
    work = baseline.prepare(shape, source)
    work()  # makes the inputs that are made once
    return eager(work)


def costs(name: str, count: Count) -> Row:
    """A count as entries of a row."""
    return {
        f"{name}_bytes": count.bytes,
        f"{name}_flops": count.flops,
        f"{name}_temporary_counted": count.temporary,
    }


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
