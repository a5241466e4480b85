"""Stage 2: each operation of the kernels against float64, a process each, launches blocking.

On the shape of Qwen2.5-VL-7B at 1,024 tokens. Several processes run at once: nothing is timed but
compiling.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial

import torch

from methods import kernels
from scripts.gpu_check.output import Row, Rows, main, sentence
from scripts.kernel_bench import decode, operations
from scripts.kernel_bench.apart import Lost, Worker
from scripts.kernel_bench.shapes import DTYPES, MODELS, SMALL, Shape

LENGTH = 1024
SUITES = (operations.SUITE, decode.SUITE)
_CAPTURED = "decode_step_graph"  # left to the bench: a capture may not like launches that block
_SECONDS = 60.0  # of one operation
_AT_ONCE = 8


def work(rows: Rows, dry: bool) -> None:
    """A row for each operation and dtype."""
    real = replace(MODELS["qwen2.5-vl-7b"], length=LENGTH, scale=200.0)  # a window that adapts
    shape = SMALL[0] if dry else real
    every = [each for suite in SUITES for each in suite.operations if each.applies(shape)]
    names = [each.name for each in every if each.name != _CAPTURED]
    wanted = [(name, dtype) for dtype in (("fp32",) if dry else ("bf16", "fp32")) for name in names]
    device = "cpu" if dry else "cuda"
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        asked = {pool.submit(apart, shape, device, *each): each for each in wanted}
        for done in as_completed(asked):
            name, dtype = asked[done]
            rows.put(f"{name} {dtype}", **done.result())


def apart(shape: Shape, device: str, name: str, dtype: str) -> Row:
    """The row of one operation, checked in a process of its own."""
    try:
        worker = Worker(partial(partial, check, shape, device), _SECONDS)
        row = worker(name, dtype)
        worker.close()
        return row
    except Lost as lost:
        return {"verdict": "failed", "why": str(lost)}


def check(shape: Shape, device: str, name: str, dtype: str) -> Row:
    """Run an operation as its kernel and compare it with its published formula."""
    torch.backends.cuda.matmul.allow_tf32 = False  # references are float32 or wider
    began = time.perf_counter()
    shape = replace(shape, itemsize=DTYPES[dtype].itemsize)
    suite, operation = next(
        (suite, each) for suite in SUITES for each in suite.operations if each.name == name
    )
    try:
        with torch.no_grad(), kernels.using("triton"):
            source = suite.draw(shape, DTYPES[dtype], torch.device(device))
            error = operation.check(shape, source, operation.prepare(shape, source)())
    except Exception as failure:
        return {"verdict": "failed", "why": sentence(failure)}
    allowed = operation.allowed(DTYPES[dtype])
    row: Row = {"error": error, "tolerance": allowed, "seconds": time.perf_counter() - began}
    if not error <= allowed:
        row.update(verdict="failed", why=f"off by {error:.1e}, {allowed:.0e} is allowed")
    return row


if __name__ == "__main__":
    sys.exit(main("operations", work, __doc__))
