"""How one answer of one question row becomes a score, for any task of lmms-eval.

Knows lmms-eval's task objects and documents; must not know models, methods or the store. What is
special to one family of tasks sits in its own file (`mmbench.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.metrics import mean

from harness.errors import UserError
from harness.models.segments import Texts
from harness.scoring import generic, mmbench
from harness.scoring.judgement import Document, Judgement, Question, Scorer
from harness.scoring.judges import judge_of
from harness.settings.config import SCORERS, TaskConfig

ROWS = 20  # that tell which metric every row of a task has
QUESTIONS = ("question", "input")  # columns that hold a row's question
SHOWN = 500  # characters of the beginning and of the end of a long question


class Scores:
    """Any task whose own functions score each answer, see `generic.sample_score`."""

    def __init__(self, task: Any) -> None:
        """Take the task's first metric.

        Raises:
            UserError: the task has no metric.
        """
        metrics = list(task.aggregation())
        if not metrics:
            raise UserError(f"The task {task.task_name} has no metric: choose a task that scores.")
        self.task, self.metric = task, metrics[0]
        self.shown = _shown(task) if len(metrics) > 1 else metrics[0]
        given = task.config.metadata if isinstance(task.config.metadata, dict) else {}
        there = set(task.eval_docs_no_media.column_names)
        named = [given.get(name) for name in ("category", "l2_category")]
        self._columns = [name if name in there else None for name in named]

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Every row is a question of its own; the task's metadata names the columns of its kind."""
        kinds = [None if name is None else str(document[name]) for name in self._columns]
        text, answer = str(task.doc_to_text(document)), str(task.doc_to_target(document))
        return Question(row, row, kinds[0], kinds[1], shortened(text), shortened(answer))

    def texts(self, task: Any, document: Document) -> Texts:
        """The row's question where a column holds it, else the prompt without what the task's
        settings put around it.
        """
        columns = [document.get(name) for name in QUESTIONS]
        around = task.lmms_eval_specific_kwargs or {}
        before, behind = (str(around.get(f"{place}_prompt") or "") for place in ("pre", "post"))
        whole = str(task.doc_to_text(document)).removeprefix(before).removesuffix(behind)
        return Texts((*(text for text in columns if isinstance(text, str)), whole))

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """The score that the task's metrics hold, and the answer as it was read where they tell.

        Raises:
            UserError: they hold no number that is a score from 0 to 1.
        """
        score, parsed = generic.sample_score(self.task, document, metrics)
        return Judgement(parsed, score)

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """The mean score where the task's aggregation is the mean; else a task does as it likes."""
        if self.shown != self.metric or self.task.aggregation()[self.metric] is not mean:
            return None
        return sum(judgement.score for judgement in judged) / len(judged)


def _shown(task: Any) -> str:
    """The metric that stands for the whole task: some give each kind of row one of its own."""
    first = next(iter(task.aggregation()))
    if judge_of(task.config.process_results):
        return first
    documents = task.eval_docs_no_media
    rows = range(0, len(documents), max(1, len(documents) // ROWS))
    results = [task.process_results(documents[row], [""]) for row in rows]
    return generic.metric_of(task, results) or first


def shortened(text: str) -> str:
    """A long text without its middle, for tables: a prompt can have a million characters."""
    if len(text) <= 2 * SHOWN:
        return text
    return f"{text[:SHOWN]} [{len(text) - 2 * SHOWN:,} characters] {text[-SHOWN:]}"


def scorer_for(config: TaskConfig, task: Any) -> Scorer:
    """The scorer that a task's settings name; UserError when there is none of that name."""
    if config.scorer == "mmbench" or mmbench.fits(task):
        return mmbench.MMBench(config.extraction or "lmms_eval")
    if config.scorer == "auto":
        generic.check(task.task_name, vars(task.config))
        return Scores(task)
    raise UserError(f"scorer={config.scorer} is not known: use one of {', '.join(SCORERS)}.")
