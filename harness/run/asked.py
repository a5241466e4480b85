"""A task that a run asks: its questions, its cells, and what the store holds of them.

Must not answer or score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.store import Store
from harness.run.tasks import Task
from harness.settings.grid import Cell, full_cells

if TYPE_CHECKING:
    from harness.scoring.benchmark import Benchmark


@dataclass(frozen=True)
class Asked:
    """A task with its questions, its cells by key, and the settings that are in the keys."""

    task: Task
    benchmark: "Benchmark"
    context: Mapping[str, object]
    cells: Mapping[str, Cell]

    @property
    def full(self) -> dict[str, Cell]:
        """The full cache's cells, one a protocol and prefill, by key."""
        return full_cells(self.cells)

    def missing(self, store: Store) -> int:
        """Rows for which the store lacks some cell."""
        done = store.done(self.cells)
        return sum(len(done.get(row, ())) < len(self.cells) for row in self.benchmark.rows)

    def whole(self, store: Store) -> set[int]:
        """The questions of which every row has an answer of every cell."""
        done = store.done(self.cells)
        pairs = zip(self.benchmark.rows, self.benchmark.questions, strict=True)
        lacking = {q.question_id for row, q in pairs if len(done.get(row, ())) < len(self.cells)}
        return {q.question_id for q in self.benchmark.questions} - lacking

    @property
    def questions(self) -> int:
        """How many questions are asked, their rotations taken together."""
        return len({question.question_id for question in self.benchmark.questions})

    def answered(self, store: Store) -> int:
        """How many questions some cell has answered by now, the full cache and control aside."""
        done = store.done(key for key, cell in self.cells.items() if cell.evicts)
        pairs = zip(self.benchmark.rows, self.benchmark.questions, strict=True)
        return len({question.question_id for row, question in pairs if row in done})
