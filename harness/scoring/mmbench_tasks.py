"""What the MMBench tasks of this project do differently from lmms-eval's: the functions that
tasks/mmbench/*.yaml name.

Knows lmms-eval's MMBench functions; must not know models, methods or scorers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.tasks.mmbench import cc_utils, cn_utils, en_utils

from harness.scoring.strict import present

Document = Mapping[str, Any]
# A final line: "Answer: B", "**Answer:** B", "The answer is (B).", "答案是B"; \uff1a: wide colon.
_FINAL = re.compile(
    r"(?:\banswer\b\W{0,4}(?:is\b|:|\uff1a)|答案\W{0,4}(?:是|为|:|\uff1a))", re.IGNORECASE
)
_BARE = re.compile(r"\W*[A-D]\W*")
_AROUND = " \t\n*_`:\uff1a.。"  # what may surround a final answer without being part of it


def cn_text(document: Document, lmms_eval_specific_kwargs: Any = None) -> str:
    """lmms-eval's Chinese prompt, without a hint where the table says "nan" for none."""
    hint = document["hint"] if present(document["hint"]) else None
    text = cn_utils.mmbench_doc_to_text({**document, "hint": hint}, lmms_eval_specific_kwargs)
    return str(text)


def reasoned_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's items of an answer that reasons: only its final answer is the prediction."""
    found = en_utils.mmbench_process_results(document, [final_answer(results[0])])
    return dict(found)


def final_answer(text: str) -> str:
    """What an answer says on its last line, if that is one letter, or after its last "Answer:".

    Empty, thus unparsed, where it has neither: a chain of thought that was cut off names options on
    its way, and none of them is its answer.
    """
    lines = text.strip().splitlines()
    if lines and _BARE.fullmatch(lines[-1]):
        return lines[-1].strip(_AROUND)
    marks = list(_FINAL.finditer(text))
    if not marks:
        return ""
    return text[marks[-1].end() :].strip(_AROUND).split("\n")[0].strip(_AROUND)


def secret_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """As lmms-eval's, for rows that have no column `answer`."""
    return dict(en_utils.mmbench_process_results({"answer": None, **document}, results))


def culture_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's items of the culture questions (CCBench), which have no L2 ability."""
    return dict(cc_utils.mmbench_cn_cc_process_results(document, results))


def circular(results: list[dict[str, Any]]) -> float:
    """Circular accuracy in percent by lmms-eval's static evaluation, writing no file."""
    overall, _, _ = en_utils.mmbench_evaluator.eval_result(results, eval_method="static")
    return 100 * float(overall)


def none(results: list[dict[str, Any]]) -> float:
    """The score of answers that nobody but the benchmark's server can compare: not a number."""
    return float("nan")
