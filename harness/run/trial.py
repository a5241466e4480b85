"""One task before the loaded model, as `evictbench check` tries it.

Prompts are measured, two of them are answered by every cell, and each cell is held against the full
cache masked to what it keeps. Must not know the store.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from harness.engine import NoRoom, NotFinite, selfcheck
from harness.errors import UserError
from harness.models.precision import rerun
from harness.process import stopping
from harness.run.asked import Asked
from harness.run.collect import planned
from harness.run.lines import duration, line, named, percent, size
from harness.scoring import quiet, rows

if TYPE_CHECKING:
    from harness.scoring.bridge import Bridge

SAMPLE = 50  # prompts whose length is measured


@dataclass(frozen=True)
class Row:
    """A prompt: its position in the task, its tokens, and how many it lost to fit."""

    position: int
    tokens: int
    cut: int


class Trial:
    """Tries one task; UserError, one sentence, from every method for what would not work."""

    def __init__(self, engine: "Bridge", one: Asked, log: Path) -> None:
        """Take the model, the task, and the file for what libraries write."""
        self.engine, self.one, self.log = engine, one, log
        self.plan = planned(one)

    def run(self) -> float:
        """Print what there is to say; the seconds that answering every row would take."""
        count = len(self.plan.rows)
        line("task", f"{self.one.task.name}: {count:,} rows x {len(self.plan.cells)} cells")
        rows = [self._measured(position) for position in spread(count)]
        self._tell_prompts(rows)
        usual, longest = two(rows)
        batch = self._compare({usual.position, longest.position})
        seconds, first = self._answered(usual.position)
        most, results = self._answered(longest.position)
        self._tell_cache(results, batch)
        self._tell_exposed([*first, *results])
        line(
            "time",
            f"{duration(seconds)} for a row of usual length, {duration(most)} for the longest, "
            f"about {duration(seconds * count)} for all",
        )
        return seconds * count

    def _measured(self, position: int) -> Row:
        stopping.check()
        with self._at(position):
            cells = [cell for cell in self.plan.cells.values() if cell.control == "none"]
            return Row(position, *self.engine.measure(**self._request(position), cells=cells))

    def _tell_prompts(self, rows: Sequence[Row]) -> None:
        tokens, cut = [row.tokens for row in rows], sum(row.cut > 0 for row in rows)
        limit = self.engine.max_length or self.engine.loaded.context_limit
        line(
            "prompts",
            f"{min(tokens):,} to {max(tokens):,} tokens, median {median(tokens):,.0f}, of "
            f"{len(rows)} sampled"
            + (f"; {cut} lose their middle to fit" if cut else "")
            + (f"; with its answer a prompt may have {limit:,}" if limit else ""),
        )

    def _compare(self, positions: set[int]) -> int:
        """Hold every cell against the masked full cache; how many cells decode together."""
        cells = [cell for cell in self.plan.cells.values() if cell.control == "none"]
        worst = dict.fromkeys(cells, 0.0)
        batch = len(cells)
        for position in sorted(positions):
            for under in dict.fromkeys(cell.under for cell in cells):
                part = [cell for cell in cells if cell.under == under]
                with self._at(position):
                    found = self.engine.compare(cells=part, **self._request(position))
                    batch = min(batch, found.batch)
                    for cell, share in zip(part, found.differences, strict=True):
                        if share is None:
                            worst.pop(cell, None)
                            continue
                        self._refuse(named(cell), share)
                        worst[cell] = max(worst[cell], share)
        left_out = sorted({cell.label for cell in cells if cell not in worst})
        line(
            "masked",
            f"logits of {len(worst)} cells on {_rows(len(positions))} differ from those of the "
            f"masked full cache by {percent(max(worst.values()))} at most "
            f"({percent(self._noise)} is noise)"
            + (
                "; not compared, for they move positions or hold entries in few bits: "
                f"{', '.join(left_out)}"
                if left_out
                else ""
            ),
        )
        return batch

    @property
    def _noise(self) -> float:
        return selfcheck.LOGITS[self.engine.loaded.dtype]

    def _refuse(self, cell: str, share: float) -> None:
        """UserError for a cell that is not what its policy chose."""
        if not isfinite(share):
            dtype = str(self.engine.loaded.dtype).removeprefix("torch.")
            raise UserError(f"{cell} gives numbers that are not finite: {rerun(dtype)}.")
        if share > self._noise:
            raise UserError(
                f"{cell} gives logits that differ by {percent(share)} from those of the full cache "
                f"masked to what it keeps ({percent(self._noise)} is noise): leave that method "
                "out, or try engine.kernels=torch."
            )

    def _answered(self, position: int) -> tuple[float, list[Any]]:
        """Answer a row as the sweep does: seconds, and the results of all cells."""
        benchmark = self.one.benchmark
        messages = partial(benchmark.messages, position)
        row = self.plan.row(position, self.plan.cells, messages, benchmark.generation)
        stopping.check()
        with self._at(position):
            began = time.monotonic()
            found = rows.results(self.engine, row, rows.ready(self.engine, row))
            return time.monotonic() - began, list(found.values())

    def _tell_cache(self, results: Sequence[Any], batch: int) -> None:
        """What the longest prompt takes."""
        full = results[0]
        largest = sorted((one.cache_bytes for one in results), reverse=True)[:batch]
        each = full.full_cache_bytes / full.evictable_tokens
        line(
            "cache",
            f"{each:,.0f} bytes a token, {size(full.full_cache_bytes)} for the longest prompt; "
            f"{batch} cells decode together, with {size(sum(largest))} of their prompt",
        )

    def _tell_exposed(self, results: Sequence[Any]) -> None:
        """A note where no evicted cache has a say in an answer."""
        if not any(one.exposed_tokens for one in results):
            line(
                "note",
                "no token of these answers came from an evicted cache, so there is nothing to "
                "measure: choose protocol=replay or longer answers",
            )

    def _request(self, position: int) -> dict[str, Any]:
        benchmark = self.one.benchmark
        return {
            "messages": benchmark.messages(position),
            "generation": benchmark.generation,
            "texts": benchmark.texts(position),
        }

    @contextmanager
    def _at(self, position: int) -> Iterator[None]:
        """Keep libraries quiet, and say in which row something does not work."""
        try:
            with quiet.into(self.log):
                yield
        except (UserError, NoRoom, NotFinite) as error:
            row = self.plan.rows[position]
            raise UserError(f"task={self.one.task.name}, row {row}: {error}") from error


def spread(count: int) -> list[int]:
    """At most SAMPLE positions, from the first to the last of `count`, evenly apart."""
    chosen = min(count, SAMPLE)
    return sorted({round(i * (count - 1) / max(chosen - 1, 1)) for i in range(chosen)})


def two(rows: Sequence[Row]) -> tuple[Row, Row]:
    """The row nearest to the mean length and the longest one, another where there is one."""
    longest = max(rows, key=lambda row: row.tokens)
    usual = mean(row.tokens for row in rows)
    others = [row for row in rows if row is not longest] or [longest]
    return min(others, key=lambda row: abs(row.tokens - usual)), longest


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
