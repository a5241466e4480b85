"""MMBench: letters, rotations, and two readings of an answer.

Knows the MMBench schema and lmms-eval's evaluator for it; must not know models or methods.
A question is the group of rows with one index modulo 1,000,000, its rotations; CircularEval counts
it only if every rotation is right.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

from harness.errors import UserError
from harness.models.segments import Texts
from harness.scoring import strict
from harness.scoring.judgement import Document, Judgement, Question
from harness.settings.config import EXTRACTIONS

ROTATION = 1_000_000
OPTIONS = "ABCD"
COLUMNS = {"index", "question", "answer", "category", "image", *OPTIONS}


class MMBench:
    """Scores tasks of the MMBench family without a judge.

    A split whose answers are kept secret has empty answers: nothing is right there, what was read
    is still known, and `mmbench_submission` writes the file to hand in.
    """

    metric = "gpt_eval_score"
    shown = "accuracy"

    def __init__(self, extraction: str = "lmms_eval") -> None:
        """Choose who reads an answer.

        Args:
            extraction: "lmms_eval", its static task's permissive reading, or "strict", the exact
                matching of VLMEvalKit, where an unresolved answer is wrong.

        Raises:
            UserError: another name.
        """
        if extraction not in EXTRACTIONS:
            raise UserError(
                f"extraction={extraction} is not known: use one of {', '.join(EXTRACTIONS)}."
            )
        self.extraction = extraction

    def question(self, task: Any, document: Document, row: int) -> Question:
        """Describe a row; its letters are those of the options that are there."""
        index = int(document["index"])
        level = document.get("L2-category", document.get("l2-category"))
        return Question(
            index=index,
            question_id=index % ROTATION,
            category=str(document["category"]) if strict.present(document["category"]) else None,
            l2_category=str(level) if strict.present(level) else None,
            text=str(document["question"]),
            answer=answer(document),
            letters=tuple(name for name in OPTIONS if strict.present(document[name])),
            options=strict.options(document),
        )

    def texts(self, task: Any, document: Document) -> Texts:
        """The question behind its hint, as most tasks of the family write it, and the options."""
        question, hint = str(document["question"]), document.get("hint")
        hinted = (f"{hint} {question}",) if strict.present(hint) else ()
        options = (f"{name}. {text}" for name, text in strict.options(document).items())
        return Texts((*hinted, question), tuple(options))

    def judge(self, document: Document, metrics: Mapping[str, Any]) -> Judgement:
        """Read the letter from what the task's process_results made of an answer."""
        read = self.both(document, metrics)
        chosen, other = read if self.extraction == "lmms_eval" else read[::-1]
        if not answer(document):
            chosen, other = (replace(each, score=math.nan) for each in (chosen, other))
        return replace(chosen, other=other)

    def both(self, document: Document, metrics: Mapping[str, Any]) -> tuple[Judgement, Judgement]:
        """The permissive and the strict judgement of one answer; they differ where it is odd."""
        item = metrics[self.metric]
        choices = {k: v for k, v in strict.options(document).items() if k in OPTIONS}
        letters = (_permissive(item), strict.letter(item["prediction"], choices))
        right = answer(document)
        permissive, exact = (Judgement(x, x == right, unparsed=x is None) for x in letters)
        return permissive, exact

    def total(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> float | None:
        """Circular accuracy in percent, as the task's aggregation reports it; None where that
        cannot be compared: it reads permissively, and without answers it reports nothing.
        """
        if self.extraction != "lmms_eval" or not any(q.answer for q in questions):
            return None
        right: dict[int, bool] = {}
        for question, judgement in zip(questions, judged, strict=True):
            key = question.question_id
            right[key] = right.get(key, True) and judgement.correct
        return 100 * sum(right.values()) / len(right)


def fits(task: Any) -> bool:
    """Whether a task is of MMBench's family: its own metric, with its columns and four options or
    with lmms-eval's functions for it.
    """
    columns = set(task.eval_docs_no_media.column_names)
    results = getattr(getattr(task, "config", None), "process_results", None)
    theirs = ".mmbench" in str(getattr(results, "__module__", ""))
    plain = columns >= COLUMNS - {"image"} and "E" not in columns
    return MMBench.metric in task.aggregation() and (plain or theirs)


def answer(document: Document) -> str:
    """The right letter; empty where the split keeps it secret."""
    given = document.get("answer")
    return str(given) if strict.present(given) else ""


def _permissive(item: Mapping[str, Any]) -> str | None:
    """The letter as the static evaluation reads it: first by form and option text, then, where
    that finds nothing, by the general multiple-choice extraction.
    """
    letter = mmbench_evaluator.prefetch_answer(item)
    if not letter:
        choices = sorted(mmbench_evaluator.build_choices(item))
        letter = extract_mcq_answer(item["prediction"], choices=choices)
    return letter or None
