"""All figures of a suite, one after the other: kept as they come, and a table however it ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import rows
from .apart import Lost
from .bench import Apart, Bench, needs
from .case import Operation, Suite
from .rows import Row, Store
from .shapes import DTYPES


def run(
    suite: Suite, operations: Sequence[Operation], args: argparse.Namespace, bench: Bench | Apart
) -> int:
    """Every figure, the table, the drawing; 1 where a result is wrong or an operation fails."""
    common = bench.common
    store = Store(args.out or rows.path_of(common["device"]))
    say(
        f"{common['device']}: copies {common['bandwidth_gb_s']:.0f} GB/s, multiplies "
        f"{common['matrix_tflop_s']:.0f} TFLOP/s in {args.dtype}"
    )
    started, late = time.monotonic(), 0
    done: list[Row] = []
    lost = False
    try:
        for shape in suite.shapes(args.shapes, args.lengths, DTYPES[args.dtype].itemsize):
            for operation in operations:
                if not operation.applies(shape):
                    continue
                row = blank(suite, operation, shape, common)
                if args.resume and store.has(row):
                    continue
                if time.monotonic() - started > 60 * args.minutes:
                    late += 1
                    continue
                row = bench.figure(row, shape)
                store.put(row)
                done.append(row)
                say(_line(row))
    except Lost as error:
        say(f"No process can measure any more: {error}.")
        lost = True
    finally:
        names = dict.fromkeys(name for each in operations for name in each.baselines)
        print(rows.figures(done, list(names)))
        print(f"{len(done)} rows in {store.path}, {time.monotonic() - started:.0f} s")
        if late:
            print(f"{late} left out: --minutes {args.minutes:g} were over; use --resume.")
        sys.stdout.flush()
    draw_rows(suite, store.path, args.plot)
    return int(lost or any(row["verdict"] not in ("ok", "no memory") for row in done))


def blank(suite: Suite, operation: Operation, shape: Any, common: Row) -> Row:
    """What is known before anything runs."""
    return {
        "operation": operation.name,
        "model": shape.model,
        "length": shape.length,
        **common,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": "ok",
        **needs(suite, operation, shape, DTYPES[common["dtype"]]),
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
