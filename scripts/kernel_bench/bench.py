"""Measuring a suite on a GPU: each operation checked, timed, and compared."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from methods.kernels.launch import triton

from . import measure, rows
from .case import EAGER_TOLERANCE, Baseline, Operation, Suite, Work
from .count import Count
from .meter import eager, held
from .rows import Row, Store
from .shapes import DTYPES


class Bench:
    """One pass over the operations and shapes on a CUDA device."""

    def __init__(self, suite: Suite, args: argparse.Namespace, device: torch.device) -> None:
        """Measure what the device can do at all."""
        self.suite, self.args = suite, args
        self.dtype = DTYPES[args.dtype]
        self.device = device
        self.clock = measure.Clock(self.device)
        self.ceilings = measure.ceilings(self.clock, self.dtype, self.device)
        name = torch.cuda.get_device_name(self.device)
        self.store = Store(args.out or rows.path_of(name))
        self.shared: dict[str, Any] = {}  # figures of baselines that operations share
        self.common: Row = {
            "device": name,
            "dtype": args.dtype,
            "bandwidth_gb_s": self.ceilings.bandwidth / 1e9,
            "matrix_tflop_s": self.ceilings.matrix_rate / 1e12,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "driver": measure.driver(),
            "commit": measure.commit(),
        }
        say(
            f"{name}: copies {self.common['bandwidth_gb_s']:.0f} GB/s, multiplies "
            f"{self.common['matrix_tflop_s']:.0f} TFLOP/s in {args.dtype}"
        )

    def run(self, operations: Sequence[Operation]) -> int:
        """Every figure, the table, the drawing; 1 where a result is wrong or an operation fails."""
        started, done, late = time.monotonic(), [], 0
        itemsize = self.dtype.itemsize
        for shape in self.suite.shapes(self.args.shapes, self.args.lengths, itemsize):
            source, self.shared = None, {}
            for operation in operations:
                if not operation.applies(shape):
                    continue
                row = self.blank(operation, shape)
                if self.args.resume and self.store.has(row):
                    continue
                if time.monotonic() - started > 60 * self.args.minutes:
                    late += 1
                    continue
                torch.cuda.empty_cache()
                if source is None:
                    source = self.suite.draw(shape, self.dtype, self.device)
                self.fill(row, operation, shape, source)
                self.store.put(row)
                done.append(row)
                say(_line(row))
            del source
            torch.cuda.empty_cache()
        names = dict.fromkeys(name for each in operations for name in each.baselines)
        print(rows.figures(done, list(names)))
        print(f"{len(done)} rows in {self.store.path}, {time.monotonic() - started:.0f} s")
        if late:
            print(f"{late} left out: --minutes {self.args.minutes:g} were over; use --resume.")
        draw_rows(self.suite, self.store.path, self.args.plot)
        return int(any(row["verdict"] not in ("ok", "no memory") for row in done))

    def blank(self, operation: Operation, shape: Any) -> Row:
        """What is known before anything runs."""
        return {
            "operation": operation.name,
            "model": shape.model,
            "length": shape.length,
            **self.common,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdict": "ok",
            **needs(self.suite, operation, shape, self.dtype),
        }

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
            return f"{type(error).__name__}: {error}".splitlines()[0]


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


def draw_rows(suite: Suite, path: Path | None, wanted: bool) -> None:
    """Draw this suite's rows of a file, if asked to and if there are any."""
    if not wanted:
        return
    names = {operation.name for operation in suite.operations}
    stored = Store(path).rows.values() if path is not None else []
    own = [row for row in stored if row["operation"] in names and row["verdict"] == "ok"]
    if path is None or not own:
        print("Nothing to draw: --out names no file with rows that are right.")
        return
    image = path.with_name(path.stem + ("" if suite.name == "kernels" else f"-{suite.name}"))
    rows.plot(own, image.with_suffix(".png"))
    print(f"drawn: {image.with_suffix('.png')}")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _line(row: Row) -> str:
    where = f"{row['operation']} {row['model']} L = {row['length']}"
    if row["verdict"] == "failed":
        return f"{where}: FAILED, {row['why']}"
    if "ms" not in row:
        return f"{where}: {row['verdict']}"
    said = f"{row['ms']:.3f} ms, {100 * row.get('roofline', 0):.0f} % of the roofline"
    if row["verdict"] == "wrong":
        return f"{where}: WRONG, off by {row['error']:.1e} where {row['tolerance']:.0e} is allowed"
    return f"{where}: {said}"
