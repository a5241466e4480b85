"""MMBench: letters, rotations and lmms-eval's own static reading of an answer.

Knows the MMBench schema and lmms-eval's evaluator for it; must not know models or methods.
A question is the group of rows with one index modulo 1,000,000, its rotations; CircularEval counts
it only if every rotation is right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

from harness.scoring.scorers import Document, Judgement, Question

ROTATION = 1_000_000


class MMBench:
    """Scores tasks of the MMBench family that need no judge (the `*_static` ones)."""

    metric = "gpt_eval_score"

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Describe a row; its letters are those of the options that are there."""
        index = int(document["index"])
        return Question(
            index=index,
            question_id=index % ROTATION,
            category=str(document["category"]),
            l2_category=str(document["L2-category"]),
            text=str(document["question"]),
            answer=str(document["answer"]),
            letters=tuple(mmbench_evaluator.build_choices(document)),
        )

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """Read the letter as the task's static evaluation does: first by form and option text,
        then, where that finds nothing, by the general multiple-choice extraction.
        """
        item = metrics[self.metric]
        letter = mmbench_evaluator.prefetch_answer(item)
        if not letter:
            choices = sorted(mmbench_evaluator.build_choices(item))
            letter = extract_mcq_answer(item["prediction"], choices=choices)
        return Judgement(letter or None, letter == item["answer"], unparsed=not letter)

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """Circular accuracy in percent, as the task's aggregation reports it."""
        right: dict[int, bool] = {}
        for question, judgement in zip(questions, judged, strict=True):
            key = question.question_id
            right[key] = right.get(key, True) and judgement.correct
        return 100 * sum(right.values()) / len(right)
