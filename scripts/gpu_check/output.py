"""How a stage is started and where its findings go: a line of JSON each, as they come."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FILE = "rows.jsonl"


class Rows:
    """Rows of one stage; each says which figure it is and its verdict: ok, failed or skipped."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / FILE
        self.stage = stage
        self.bad = False

    def put(self, figure: str, verdict: str = "ok", **found: Any) -> None:
        """Write a row and say it."""
        row = {"stage": self.stage, "figure": figure, "verdict": verdict, **_rounded(found)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self.bad |= verdict == "failed"

    @contextmanager
    def trying(self, figure: str) -> Iterator[None]:
        """What fails in the block becomes a failed row, and the stage goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.put(figure, "failed", why=sentence(error))


def main(stage: str, work: Callable[[Rows, bool], None], about: str | None) -> int:
    """Run a stage: work(rows, dry). 1 where it or one of its rows failed."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=Path, help="where rows.jsonl is")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, on the CPU")
    args = parser.parse_args()
    rows = Rows(args.folder, stage)
    began = time.monotonic()
    with rows.trying("all"):
        work(rows, args.dry_run)
    print(f"{stage}: {time.monotonic() - began:.0f} s after the imports", file=sys.stderr)
    return int(rows.bad)


def sentence(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def read(folder: Path) -> list[Row]:
    """All rows of a folder, in the order in which they were written."""
    path = folder / FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
