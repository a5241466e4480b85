"""Time the attention of one new token over 31 caches of different lengths, on a CUDA device.

`make bench BENCH=decode`, or `python -m scripts.bench_decode` where only torch, triton and this
repository are there. The caches are one layer's: the full one and those of six methods at five
ratios, of one prompt. Rows go to the file and have the form of those of bench_kernels.py, see
there.

padded_ is torch's fused attention over caches padded to the longest, one_by_one_ the same for each
cache by itself, torch_ the kernel's twin in plain torch; launched_ is the step (append the new
entries, attend) launched anew each time, beside the replay of its CUDA graph. speedup_ is that over
each. Results are compared with float64 first; a wrong one gets no speedup, and exit status 1.

Without a CUDA device the operations are checked on small shapes, the kernels as well if
TRITON_INTERPRET=1 is set, and counted bytes, FLOPs and memory are printed; nothing is timed then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.kernel_bench.decode import SUITE
from scripts.kernel_bench.run import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 1 where a result is wrong."""
    return run(SUITE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
