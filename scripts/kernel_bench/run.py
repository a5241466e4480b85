"""What both benchmarks do with a suite: measure it on a GPU, or check and count it without one."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from methods import kernels
from methods.kernels.launch import interpreted

from . import rows
from .apart import Lost
from .bench import Apart, costs, counted, needs
from .case import EAGER_TOLERANCE, Operation, Suite
from .rows import Row
from .series import draw_rows, say
from .series import run as run_series
from .shapes import DTYPES, LENGTHS, MODELS, SHORTEST


def parse(suite: Suite, description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of a suite."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [operation.name for operation in suite.operations]
    add = parser.add_argument
    add(
        "--shapes",
        nargs="+",
        default=list(MODELS),
        choices=list(MODELS),
        metavar="MODEL",
        help=f"layers of these models; all of {', '.join(MODELS)} by default",
    )
    add(
        "--lengths",
        nargs="+",
        type=int,
        default=list(LENGTHS),
        metavar="L",
        help=f"prompt lengths, {SHORTEST} tokens or more; {' '.join(map(str, LENGTHS))} by default",
    )
    add(
        "--operations",
        nargs="+",
        default=names,
        choices=names,
        metavar="NAME",
        help=f"some of {', '.join(names)}; all by default",
    )
    add("--dtype", default="bf16", choices=list(DTYPES), help="of keys, values, queries and W_O")
    add("--out", type=Path, help="file of the rows, results/kernels/<device>.jsonl by default")
    add(
        "--resume",
        action="store_true",
        help="leave out what is in the file already, right, from the same commit and versions",
    )
    add("--plot", action="store_true", help="also draw the rows of the file, beside it as .png")
    add("--minutes", type=float, default=8.0, help="start no more figures after this long")
    args = parser.parse_args(argv)
    if min(args.lengths) < SHORTEST:
        parser.error(f"--lengths: give {SHORTEST} tokens or more, to keep more than the window.")
    return args


def main(suite: Suite, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and do what the machine can; 1 where a result is wrong."""
    args = parse(suite, description, argv)
    wanted = [each for each in suite.operations if each.name in args.operations]
    torch.backends.cuda.matmul.allow_tf32 = False  # references are float32 or wider
    with torch.no_grad():
        if not torch.cuda.is_available():
            bad = check_all(suite, wanted)
            print_counts(suite, wanted, args)
            print("Nothing was timed: there is no CUDA device here.")
            draw_rows(suite, args.out, args.plot)
            return bad
        if interpreted():
            raise SystemExit("TRITON_INTERPRET is set: unset it to time kernels on this GPU.")
        return measure_all(suite, wanted, args)


def measure_all(suite: Suite, wanted: Sequence[Operation], args: argparse.Namespace) -> int:
    """On the GPU; a time limit from outside ends it with what was measured, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The time is over."))
    try:
        bench = Apart(suite, args.dtype)
    except Lost as error:
        raise SystemExit(f"Nothing can be measured: {error}.") from error
    try:
        return run_series(suite, wanted, args, bench)
    finally:
        bench.close()


def check_all(suite: Suite, operations: Sequence[Operation]) -> int:
    """Every operation on small float32 shapes against float64; 1 where one is wrong."""
    modes = ["torch", *(["triton"] if interpreted() else [])]
    lines, bad = [], 0
    for shape in suite.small:
        source = suite.draw(shape, torch.float32, torch.device("cpu"))
        for operation in operations:
            runs = {mode: operation.prepare for mode in modes}
            alike = {k: v.prepare for k, v in operation.baselines.items() if v.alike}
            for mode, prepare in (runs | alike).items():
                say(f"check {operation.name} {shape.model} {mode}")
                using = kernels.using(mode) if mode in modes else contextlib.nullcontext()
                with using:
                    error = operation.check(shape, source, prepare(shape, source)())
                allowed = operation.allowed(torch.float32)
                if mode not in modes:
                    allowed = max(allowed, EAGER_TOLERANCE[torch.float32])
                wrong = not error <= allowed
                bad |= wrong
                state = "WRONG" if wrong else "ok"
                lines.append([operation.name, shape.model, mode, f"{error:.1e}", state])
    print(rows.table(["operation", "shape", "by", "error", ""], lines))
    if "triton" not in modes:
        print("The kernels themselves were not run: set TRITON_INTERPRET=1 to interpret them.")
    return int(bad)


def print_counts(suite: Suite, operations: Sequence[Operation], args: argparse.Namespace) -> None:
    """Bytes, FLOPs and temporary memory by shape, of each operation and of the eager formula."""
    dtype, found = DTYPES[args.dtype], []
    for shape in suite.shapes(args.shapes, args.lengths, dtype.itemsize):
        for operation in operations:
            if not operation.applies(shape):
                continue
            say(f"count {operation.name} {shape.model} {shape.length}")
            row: Row = {
                "operation": operation.name,
                "model": shape.model,
                "length": shape.length,
                **needs(suite, operation, shape, dtype),
            }
            for name, baseline in operation.baselines.items():
                if baseline.counted:
                    row.update(costs(name, counted(suite, baseline, shape, dtype)))
            found.append(row)
    print(f"\nCounted for {args.dtype}:")
    print(rows.counts(found))
    print(
        "GB and GFLOP: what the operation needs, and what eager torch moves. temp MB: what both "
        "allocate at once, results included. launches: of Triton's kernels."
    )
