"""What a scorer is: from a row to the question that tables show, from an answer to a judgement.

Knows lmms-eval's task objects and documents; must not know models, methods or the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.models.segments import Texts

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What the tables show of a row; rows with one question_id are rotations of one question.

    letters: of the options whose logits are recorded. options: letter to text, where there are any.
    """

    index: int
    question_id: int
    category: str | None
    l2_category: str | None
    text: str
    answer: str
    letters: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """The answer as the task reads it, its score in [0, 1], and whether it could not be read.

    The score is nan where the right answer is secret. other: by another published reading of the
    same answer, where there is one.
    """

    parsed: str | None
    score: float
    unparsed: bool = False
    other: "Judgement | None" = None

    @property
    def correct(self) -> bool:
        """Whether the answer has the full score; ROUGE's own falls short of 1 by a billionth."""
        return self.score >= 1 - 1e-6


class Scorer(Protocol):
    """The task-specific part of scoring."""

    metric: str  # the metric of lmms-eval's task that a cell's score must equal
    shown: str  # what tables call the score

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Describe a row of the data set."""

    def texts(self, task: Any, document: Document) -> Texts:
        """What is known of the text of a prompt."""

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """Read a hit from what the task's process_results returned for one answer."""

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """What lmms-eval's aggregation of a cell must come to; None where its rule is unknown."""
