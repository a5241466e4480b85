"""Stage 1: what is installed, whether torch sees the GPU and Triton can start a kernel on it, and
which way torch's fused attention goes for the shape of Qwen2.5-VL-7B.

Exit status 2 where there is no CUDA device: then no other stage makes sense.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from harness.models.devices import unusable
from methods import kernels
from scripts.gpu_check.output import Row, Rows, main
from scripts.kernel_bench import measure

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
HEADS, KV_HEADS, DIM = 28, 4, 128


def work(rows: Rows, dry: bool) -> None:
    """All rows of the stage."""
    rows.put("versions", **versions())
    compiler = compiler_of()
    why = "" if compiler else "Triton needs a C compiler: install gcc, or set CC to one"
    rows.put("compiler", "ok" if compiler else "failed", path=compiler, why=why)
    device = torch.device("cpu" if dry else "cuda")
    rows.put("device", **({"name": "cpu", "skipped": "dry run"} if dry else device_facts()))
    with rows.trying("first kernel"):
        began = time.perf_counter()
        off = first_kernel(device)
        verdict = "ok" if off < 1e-3 else "failed"
        rows.put("first kernel", verdict, error=off, seconds=time.perf_counter() - began)
    for dtype in (torch.bfloat16, torch.float32):
        with rows.trying(f"sdpa {dtype}"):
            length = 128 if dry else 4096
            rows.put(f"sdpa {dtype}".replace("torch.", ""), **attention(device, dtype, length))


def versions() -> Row:
    """Of Python, the packages and the driver."""
    found: Row = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "cuda": torch.version.cuda, "driver": measure.driver(),
            "commit": measure.commit(), "cores": os.cpu_count()}  # fmt: skip


def compiler_of() -> str | None:
    """The C compiler that Triton would take."""
    own = os.environ.get("CC")
    return shutil.which(own) if own else shutil.which("gcc") or shutil.which("clang")


def device_facts() -> Row:
    """Of the GPU."""
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "l2_mb": properties.L2_cache_size / 2**20,
        "free_gb": free / 1e9,
        "total_gb": total / 1e9,
        "devices": torch.cuda.device_count(),
    }


def first_kernel(device: torch.device) -> float:
    """The largest difference of a kernel from its twin in plain torch."""
    torch.manual_seed(0)
    queries, keys = (torch.randn(1, n, m, 64, device=device) for n, m in ((4, 8), (2, 300)))
    found = []
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            found.append(kernels.window_lse(queries, keys, 0.125))
    return float((found[0] - found[1]).abs().max())


def attention(device: torch.device, dtype: torch.dtype, length: int) -> Row:
    """Milliseconds of each way that takes a causal prompt of this length, and which is chosen."""
    keys, values = (torch.randn(1, KV_HEADS, length, DIM, device=device, dtype=dtype)
                    for _ in range(2))  # fmt: skip
    queries = torch.randn(1, HEADS, length, DIM, device=device, dtype=dtype)
    options: dict[str, Any] = {"is_causal": True, "scale": DIM**-0.5, "enable_gqa": True}
    found: Row = {"length": length}
    for name in BACKENDS:
        with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, name)):
            warnings.simplefilter("ignore")  # the reasons why a way is not taken
            try:
                found[name.lower()] = milliseconds(
                    lambda: scaled_dot_product_attention(queries, keys, values, **options), device
                )
            except RuntimeError:
                found[name.lower()] = None
    chosen = torch._fused_sdp_choice(queries, keys, values, None, 0.0, **options)
    return {**found, "chosen": SDPBackend(chosen).name.lower()}


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of five runs after one."""
    times = []
    for _ in range(6):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


if __name__ == "__main__":
    if "--dry-run" not in sys.argv and not torch.cuda.is_available():
        print(f"error: {unusable() or 'torch finds no CUDA device here'}.")
        sys.exit(2)
    sys.exit(main("versions", work, __doc__))
