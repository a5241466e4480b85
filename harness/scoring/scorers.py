"""How one answer of one question row becomes right or wrong, for any task of lmms-eval.

Knows lmms-eval's task objects and documents; must not know models, methods or the store. What is
special to one family of tasks sits in its own file (`mmbench.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.config import SCORERS
from harness.errors import UserError

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What the tables show of a row; rows with one question_id are rotations of one question."""

    index: int
    question_id: int
    category: str | None
    l2_category: str | None
    text: str
    answer: str
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The answer as the task reads it, whether it is right, and whether it could not be read."""

    parsed: str | None
    correct: bool
    unparsed: bool = False


class Scorer(Protocol):
    """The task-specific part of scoring."""

    metric: str  # the metric of lmms-eval's task that a cell's score must equal

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Describe a row of the data set."""

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """Read a hit from what the task's process_results returned for one answer."""

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """What lmms-eval's aggregation of a cell must come to; None where its rule is unknown."""


class Hits:
    """Tasks whose process_results gives 0 or 1 a sample under its first metric."""

    def __init__(self, task: Any) -> None:
        """Take the task's first metric.

        Raises:
            UserError: the task has no metric.
        """
        metrics = list(task.aggregation())
        if not metrics:
            raise UserError(f"The task {task.task_name} has no metric: choose a task that scores.")
        self.metric = metrics[0]

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Every row is a question of its own, without abilities and option letters."""
        answer = str(task.doc_to_target(document))
        return Question(row, row, None, None, str(task.doc_to_text(document)), answer)

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """The number itself; what the task made of the text stays unknown.

        Raises:
            UserError: the metric is not 0 or 1 for a sample.
        """
        value = metrics.get(self.metric)
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise UserError(
                f"The metric {self.metric} gives {value!r} for a sample, and this harness compares "
                "right with wrong: choose a task with a 0 or 1 a sample, or add a scorer for it."
            )
        return Judgement(None, bool(value))

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """Unknown: a task aggregates as it likes."""
        return None


def scorer_for(name: str, task: Any) -> Scorer:
    """The scorer that a task's settings name; UserError when there is none of that name."""
    if name == "hits":
        return Hits(task)
    if name == "mmbench":
        from harness.scoring.mmbench import MMBench

        return MMBench()
    raise UserError(f"task.scorer={name} is not known: use one of {', '.join(SCORERS)}.")
