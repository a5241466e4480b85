"""Time the kernels of the eviction methods on a CUDA device, each checked against its formula.

`make bench BENCH=kernels`, or `python -m scripts.bench_kernels` where only torch, triton and this
repository are there. One row for each operation, model and length goes to
results/kernels/<device>.jsonl, replacing what stood there; no figure is started after --minutes.

A row holds the median, 20th and 80th percentile in ms (CUDA events, L2 flushed before each run),
the bytes and FLOPs that the operation needs (scripts/kernel_bench/count.py) and their part of what
a large copy and a large product reach on this device: memory_roofline, matrix_roofline and the
larger of them, roofline. temporary_bytes is the measured peak beyond the inputs. The same for the
published formula in eager torch (eager_), and times of torch's fused attention (sdpa_): of the
whole prompt for scores, of the window for its parts. speedup_eager compares two ways to one result;
ratio_sdpa says how many times the operation fits into that attention.

Each result is first compared with the published formula on the same shape: in float64 on the first
and the last KV head, or in float32 on the first where all queries of a long prompt look. Where it
is off, the row says "wrong", no speedup is given, and the exit status is 1. Without a CUDA device
the operations are checked on small shapes, the kernels as well if TRITON_INTERPRET=1 is set, and
counted bytes, FLOPs and memory are printed; nothing is timed then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.kernel_bench.operations import SUITE
from scripts.kernel_bench.run import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 1 where a result is wrong."""
    return run(SUITE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
