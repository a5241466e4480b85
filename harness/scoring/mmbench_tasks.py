"""What the MMBench tasks of this project do differently from lmms-eval's: the functions that
tasks/mmbench/*.yaml name.

Knows lmms-eval's MMBench functions; must not know models, methods or scorers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.tasks.mmbench import cc_utils, cn_utils, en_utils

from harness.scoring import letters
from harness.scoring.strict import present

Document = Mapping[str, Any]
# What leads to a final answer: "Answer: B", "**Answer:** blue", "The answer is (B).", "答案是B".
_FINAL = re.compile(r"(?:\banswer\b\W{0,4}(?:is\b|:)|答案\W{0,4}(?:是|为|:))", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{)?([^{}]*)\}")
_BARE = re.compile(r"\W*(?:(?:[Oo]ption|选项)\W*)?[A-D]\W*(?:选?项\W*)?")
_AROUND = " \t\n*_`:\uff1a.。$"  # what may surround a final answer without being part of it
_END = 10_000  # characters of an answer among which its conclusion is looked for
_LETTER = re.compile(r"[\W_]*[A-H](?![a-z])")
_WITH_TEXT = re.compile(r"\(?[A-Ha-h][.:)][^{}]*")
_DENIAL = re.compile(r"\W*(?:not|neither|none|never)\b|\W*[不非没]", re.IGNORECASE)


def cn_text(document: Document, lmms_eval_specific_kwargs: Any = None) -> str:
    """lmms-eval's Chinese prompt, without a hint where the table says "nan" for none."""
    hint = document["hint"] if present(document["hint"]) else None
    text = cn_utils.mmbench_doc_to_text({**document, "hint": hint}, lmms_eval_specific_kwargs)
    return str(text)


def static_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's items of an answer, its wide letters as ASCII: lmms-eval's rules know no others,
    and a letter that a Chinese keyboard typed wide is the same letter.
    """
    return dict(en_utils.mmbench_process_results(document, _narrow(results)))


def _narrow(results: Sequence[str]) -> list[str]:
    return [letters.ascii_letters(text) for text in results]


def reasoned_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's items of an answer that reasons: only its final answer is the prediction."""
    found = en_utils.mmbench_process_results(document, [final_answer(results[0])])
    return dict(found)


def final_answer(text: str) -> str:
    """What an answer says on its last line, if that is one letter, or where words lead to it last:
    "Answer:", "the correct option is", "所以选", a box.

    Empty, thus unparsed, where it has neither, or denies it, or names several letters: a chain of
    thought that was cut off names options on its way, and none of them is its answer.
    """
    said = letters.plain(text[-_END:]).strip()
    lines = said.splitlines()
    if lines and _BARE.fullmatch(lines[-1]) and "?" not in lines[-1]:
        return lines[-1].strip(_AROUND)
    ends = [*_tails(said), *((claim.start, claim.letter) for claim in letters.concluded(said))]
    place, final = max(ends, default=(0, ""))
    tail = said[place:].strip(_AROUND).split("\n")[0].strip(_AROUND)
    whole = final and tail.isascii() and _WITH_TEXT.fullmatch(tail)  # "C. cat" says more than "C"
    return tail if whole and len(letters.mentions(tail)) < 2 else final


def _tails(said: str) -> Iterator[tuple[int, str]]:
    """What follows the words that lead to an answer, where it is no letter, and where it stands."""
    for found in (*_FINAL.finditer(said), *_BOXED.finditer(said)):
        rest = said[found.end() :] if found.re is _FINAL else found[1]
        tail = rest.strip(_AROUND).split("\n")[0].strip(_AROUND)
        if letters.denied(said, found.start()) or _LETTER.match(tail) or _DENIAL.match(tail):
            continue
        if tail:
            yield found.end(), "" if len(letters.mentions(tail)) > 1 else tail


def secret_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """As lmms-eval's, for rows that have no column `answer`."""
    return dict(en_utils.mmbench_process_results({"answer": None, **document}, _narrow(results)))


def culture_results(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's items of the culture questions (CCBench), which have no L2 ability."""
    return dict(cc_utils.mmbench_cn_cc_process_results(document, _narrow(results)))


def circular(results: list[dict[str, Any]]) -> float:
    """Circular accuracy in percent by lmms-eval's static evaluation, writing no file."""
    overall, _, _ = en_utils.mmbench_evaluator.eval_result(results, eval_method="static")
    return 100 * float(overall)


def none(results: list[dict[str, Any]]) -> float:
    """The score of answers that nobody but the benchmark's server can compare: not a number."""
    return float("nan")
